"""Masks of padding in a batch of pictures, at any resolution of the CNN.

A picture that is seen alone is padded to multiples of `pad_px`: that is its canvas, and beyond it
convolutions read zeros. In a batch the tensor may be larger. Its layers would turn the padding
beyond a canvas into something else than zero (a BatchNorm's shift is enough), which the picture's
border cells would then read. So all maps are kept at zero there, and a picture has the same cells
whatever it is batched with.
Letters: N pictures, H and W pixels of the tensor, h and w places of a map.
"""

from __future__ import annotations

import torch


def canvas_px(sizes_px: torch.Tensor, pad_px: int) -> torch.Tensor:
    """Height and width [N, 2] of each picture alone: sizes, rounded up to multiples of `pad_px`."""
    return (sizes_px + pad_px - 1).div(pad_px, rounding_mode="floor") * pad_px


def fills_canvas(sizes_px: torch.Tensor, height_px: int, width_px: int, pad_px: int) -> bool:
    """Whether the canvas of every picture [N, 2] is the whole tensor. It reads the device."""
    own = canvas_px(sizes_px, pad_px)
    return not bool(((own[:, 0] < height_px) | (own[:, 1] < width_px)).any())


class Canvases:
    """The canvases of a batch: `keep` sets maps to zero beyond them.

    sizes_px [N, 2], height and width before padding; height_px and width_px, the tensor's own H and
    W, multiples of `pad_px`. Where every picture fills the tensor nothing is done and nothing is
    paid. all_full: whether that is so; None to read the sizes, for which a GPU is waited for.
    """

    def __init__(
        self,
        sizes_px: torch.Tensor,
        *,
        height_px: int,
        width_px: int,
        pad_px: int,
        all_full: bool | None = None,
    ) -> None:
        self._canvas_px = canvas_px(sizes_px, pad_px)
        self._size_px = (height_px, width_px)
        self._inside: dict[tuple[int, int], torch.Tensor] = {}
        if all_full is None:
            all_full = fills_canvas(sizes_px, height_px, width_px, pad_px)
        self.all_full = all_full

    def keep(self, maps: torch.Tensor) -> torch.Tensor:
        """maps [N, D, h, w], zero beyond each picture's canvas from here on, in place.

        In place costs no memory between a BatchNorm, whose output is not kept for
        the backward pass, and a ReLU.
        """
        rows, columns = maps.shape[2:]
        return maps.mul_(self.inside(rows, columns))  # several times faster than masked_fill_

    def inside(self, rows: int, columns: int) -> torch.Tensor:
        """Places of a map that lie on the canvases: bool [N, 1, rows, columns], each of which
        stands for as many pixels as any other."""
        if (rows, columns) not in self._inside:
            down, across = (
                torch.arange(num, device=self._canvas_px.device) * (size // num)
                for num, size in zip((rows, columns), self._size_px)
            )
            on_rows, on_columns = down < self._canvas_px[:, :1], across < self._canvas_px[:, 1:]
            self._inside[rows, columns] = (on_rows[:, :, None] & on_columns[:, None, :])[:, None]
        return self._inside[rows, columns]
