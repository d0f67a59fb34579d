"""A cache of a frozen CNN's outputs over epochs (ours)."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

import torch

from stages.pretrain.caches.disk_cache import DiskCache
from stages.pretrain.caches.tensor_cache import TensorCache
from stages.pretrain.data.batch import Batch
from stages.student.network import Student
from stages.student.vision.padding import canvas_px

AT_ONCE_CPU = 4
"""Pictures that a CPU's caches have room for: larger batches take longer a picture."""


class CnnCache:
    """The CNN's maps of pictures that were seen before, by view.

    For a CNN that does not learn, and views that come again. Maps are kept in 16 bits, each without
    what lies beyond its picture, up to `limit_bytes` in this process; others are computed again.
    `stored`: a folder of them beside, from which views are read, and to which `store` adds new
    ones. After `keep_features` a view's maps give way to its cells in memory, which are fewer
    numbers and need no projection.
    """

    def __init__(self, limit_bytes: int, stored: DiskCache | None = None) -> None:
        self._cache = TensorCache(limit_bytes, stored)
        self._keeps_features = False

    def __contains__(self, view: str) -> bool:
        return view in self._cache or _cells(view) in self._cache

    def store(self) -> None:
        """Write the maps that were computed since the last call to the folder, if there is one."""
        self._cache.store()

    def keep_features(self) -> None:
        """To be called when the projection to cells stays as it is."""
        self._keeps_features = True

    def outputs(self, student: Student, batch: Batch) -> dict[str, torch.Tensor]:
        """What `encode_image` need not compute, by its argument: `maps`, or after `keep_features`
        `features`."""
        if self._keeps_features:
            return {"features": self.features(student, batch)}
        return {"maps": self.maps(student, batch)}

    @torch.no_grad()
    def features(self, student: Student, batch: Batch) -> torch.Tensor:
        """What `grid` gives for the batch's pictures, but for rounding: [N, R, S, D]."""
        grid = student.grid
        num_rows, num_columns = (side // grid.cell_px for side in batch.pixels.shape[2:])
        shape = (len(batch.views), num_rows, num_columns, grid.project.out_channels)
        features = torch.zeros(shape, device=batch.pixels.device, dtype=student.dtype)
        if grid.project.bias is not None:
            features += grid.project.bias  # what the projection makes of maps beyond a picture
        own = _num_cells(student, batch)
        new = [n for n, view in enumerate(batch.views) if _cells(view) not in self._cache]
        for start in range(0, len(new), AT_ONCE_CPU):
            some = new[start : start + AT_ONCE_CPU]
            part = replace(
                batch,
                views=[batch.views[n] for n in some],
                pixels=batch.pixels[some],
                sizes_px=batch.sizes_px[some],
            )
            features[some] = grid.cells_of(self.maps(student, part))
        for n, view in enumerate(batch.views):
            down, across = own[n]
            if _cells(view) in self._cache:
                features[n, :down, :across] = self._cache[_cells(view)].to(features)
            else:
                self._cache.discard(view)
                self._cache.add(_cells(view), features[n, :down, :across])
        return features

    @torch.no_grad()
    def maps(self, student: Student, batch: Batch) -> torch.Tensor:
        """What `encode_maps` gives for the batch's pictures, but for rounding: [N, X, R, S]."""
        grid = student.grid
        known = [view in self._cache for view in batch.views]
        new = [n for n, is_known in enumerate(known) if not is_known]
        num_rows, num_columns = (side // grid.cell_px for side in batch.pixels.shape[2:])
        shape = (len(batch.views), grid.project.in_channels, num_rows, num_columns)
        maps = torch.zeros(shape, device=batch.pixels.device, dtype=student.dtype)
        own = _num_cells(student, batch)
        if new:
            new.sort(key=own.__getitem__)  # pictures of similar size go together
            rows = torch.tensor(new, device=batch.pixels.device)
            at_once = AT_ONCE_CPU if rows.device.type == "cpu" else len(rows)
            for some in rows.split(at_once):
                sizes = batch.sizes_px[some]
                height, width = canvas_px(sizes, grid.pad_px).amax(dim=0).tolist()
                part = student.encode_maps(batch.pixels[some, :, :height, :width], sizes)
                maps[some, :, : part.shape[2], : part.shape[3]] = part
        for n, view in enumerate(batch.views):
            down, across = own[n]
            if known[n]:
                maps[n, :, :down, :across] = self._cache[view].to(maps)
            else:
                self._cache.add_new(view, maps[n, :, :down, :across])
        return maps


def _cells(view: str) -> Hashable:
    """The name of a view's cells in the cache, beside that of its maps."""
    return ("cells", view)


def _num_cells(student: Student, batch: Batch) -> list[list[int]]:
    """Rows and columns of each picture's own cells."""
    grid = student.grid
    return (canvas_px(batch.sizes_px, grid.pad_px) // grid.cell_px).tolist()
