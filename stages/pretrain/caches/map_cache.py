"""Outputs of a frozen CNN, kept from one epoch to the next (ours)."""

from __future__ import annotations

import torch

from stages.pretrain.caches.stored_tensors import StoredTensors
from stages.pretrain.caches.tensor_cache import TensorCache
from stages.pretrain.data.batch import Batch
from stages.student.network import Student
from stages.student.vision.padding import canvas_px

AT_ONCE_CPU = 4
"""Pictures that a CPU's caches have room for: larger batches take longer a picture."""


class MapCache:
    """The CNN's maps of pictures that were seen before, by view.

    For a CNN that does not learn, and views that come again. Maps are kept in 16 bits, each without
    what lies beyond its picture, up to `limit_bytes` in this process; later ones are computed anew.
    `stored`: a folder of them beside, from which views are read, and to which `store` adds new
    ones.
    """

    def __init__(self, limit_bytes: int, stored: StoredTensors | None = None) -> None:
        self._cache = TensorCache(limit_bytes)
        self._stored = stored
        self._new: dict[str, torch.Tensor] = {}

    def __contains__(self, view: str) -> bool:
        return view in self._cache or (self._stored is not None and view in self._stored)

    def store(self) -> None:
        """Write the maps that were computed since the last call to the folder, if there is one."""
        if self._stored is not None:
            self._stored.write(self._new)
            self._new = {}

    @torch.no_grad()
    def maps(self, student: Student, batch: Batch) -> torch.Tensor:
        """What `encode_maps` gives for the batch's pictures, but for rounding: [N, X, R, S]."""
        grid = student.grid
        new = [n for n, view in enumerate(batch.views) if view not in self]
        num_rows, num_columns = (side // grid.cell_px for side in batch.pixels.shape[2:])
        shape = (len(batch.views), grid.project.in_channels, num_rows, num_columns)
        maps = torch.zeros(shape, device=batch.pixels.device, dtype=student.dtype)
        own = (canvas_px(batch.sizes_px, grid.pad_px) // grid.cell_px).tolist()
        if new:
            new.sort(key=own.__getitem__)  # pictures of like size go together
            rows = torch.tensor(new, device=batch.pixels.device)
            at_once = AT_ONCE_CPU if rows.device.type == "cpu" else len(rows)
            for some in rows.split(at_once):
                sizes = batch.sizes_px[some]
                height, width = canvas_px(sizes, grid.pad_px).amax(dim=0).tolist()
                part = student.encode_maps(batch.pixels[some, :, :height, :width], sizes)
                maps[some, :, : part.shape[2], : part.shape[3]] = part
        for n, view in enumerate(batch.views):
            down, across = own[n]
            if view in self:
                maps[n, :, :down, :across] = self._known(view).to(maps)
            else:
                self._add(view, maps[n, :, :down, :across])
        return maps

    def _known(self, view: str) -> torch.Tensor:
        if view not in self._cache:
            assert self._stored is not None
            read = self._stored.read(view)
            self._cache.add(view, read)
            return read
        return self._cache[view]

    def _add(self, view: str, maps: torch.Tensor) -> None:
        self._cache.add(view, maps)
        if self._stored is not None and view in self._cache:
            self._new[view] = self._cache[view]
