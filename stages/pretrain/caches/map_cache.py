"""Outputs of a frozen CNN, kept in memory from one epoch to the next (ours)."""

from __future__ import annotations

import torch

from stages.pretrain.caches.tensor_cache import TensorCache
from stages.pretrain.data.batch import Batch
from stages.student.network import Student
from stages.student.vision.padding import canvas_px


class MapCache:
    """The CNN's maps of pictures that were seen before, by view.

    For a CNN that does not learn, and views that come again. Maps are kept in 16 bits, each without
    what lies beyond its picture, up to `limit_bytes` in this process; later ones are computed anew.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._cache = TensorCache(limit_bytes)

    def __contains__(self, view: str) -> bool:
        return view in self._cache

    @torch.no_grad()
    def maps(self, student: Student, batch: Batch) -> torch.Tensor:
        """What `encode_maps` gives for the batch's pictures, but for rounding: [N, X, R, S]."""
        grid = student.grid
        new = [n for n, view in enumerate(batch.views) if view not in self._cache]
        num_rows, num_columns = (side // grid.cell_px for side in batch.pixels.shape[2:])
        shape = (len(batch.views), grid.project.in_channels, num_rows, num_columns)
        maps = torch.zeros(shape, device=batch.pixels.device, dtype=student.dtype)
        own = (canvas_px(batch.sizes_px, grid.pad_px) // grid.cell_px).tolist()
        if new:
            rows = torch.tensor(new, device=batch.pixels.device)
            maps[rows] = student.encode_maps(batch.pixels[rows], batch.sizes_px[rows])
        for n, view in enumerate(batch.views):
            down, across = own[n]
            if view in self._cache:
                maps[n, :, :down, :across] = self._cache[view].to(maps)
            else:
                self._cache.add(view, maps[n, :, :down, :across])
        return maps
