"""The training data as a map from positions to micro-batches, for PyTorch's DataLoader.

Reached by the training stages:

    stream = Stream(folder, "train", seed=0, micro_batch_size=32, window_num_shards=8,
                    shape_step_px=64)
    order = positions(start, rank, world_size)
    loader = DataLoader(stream, batch_size=None, sampler=order, num_workers=4, collate_fn=collate)

Each item is a list of samples, still encoded; collate_fn runs in the workers and decodes them. The
state to save is the position of the next step, start + steps * world_size, and nothing else.
"""
from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from sharding.catalog import load_manifest, read_catalog
from sharding.manifest import Manifest
from sharding.order import Order
from sharding.read import OpenTar, read_entry
from sharding.schema import Sample

# File descriptors a process holds; carried samples reach back beyond the current window.
_NUM_TARS_OPEN = 64


class Stream(Dataset[list[Sample]]):
    """stream[position] is the list of samples of order[position], each checked by its CRC-32.

    folder, split: a folder of finished shards and the split of its catalog to read.
    seed, micro_batch_size, window_num_shards, shape_step_px: of the order, see sharding.order.

    Opens every manifest of the split once, for the shapes. Tars are opened when first needed, in
    the process that needs them; pickled or forked copies share nothing. Raises ShardError naming
    tar and key when a shard is missing, replaced since its catalog was written, cut or damaged.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        *,
        seed: int,
        micro_batch_size: int,
        window_num_shards: int,
        shape_step_px: int,
    ) -> None:
        self._folder = folder
        self._shards = read_catalog(folder).of_split(split)
        self._num_manifests_kept = 2 * window_num_shards
        self.order = Order(
            [self._shapes(shard) for shard in range(len(self._shards))],
            seed=seed,
            micro_batch_size=micro_batch_size,
            window_num_shards=window_num_shards,
            shape_step_px=shape_step_px,
        )
        self._make_caches()

    @property
    def num_micro_batches(self) -> int:
        """Positions an epoch; epoch e begins at position e * num_micro_batches."""
        return self.order.num_micro_batches

    def __getitem__(self, position: int) -> list[Sample]:
        """The samples at `position`; ShardError on damage, IndexError below 0."""
        return [
            read_entry(self._tar(shard), self._manifest(shard).samples[sample])
            for shard, sample in self.order[position].samples
        ]

    def _load(self, shard: int) -> Manifest:
        entry = self._shards[shard]
        return load_manifest(self._folder / entry.tar, entry)

    def _open(self, shard: int) -> OpenTar:
        source = OpenTar(self._folder / self._shards[shard].tar)
        source.check_size(self._manifest(shard))
        return source

    def _shapes(self, shard: int) -> np.ndarray:
        """Width and height in pixels of a shard's samples, [n, 2]."""
        entries = self._load(shard).samples
        return np.array([(entry.width, entry.height) for entry in entries]).reshape(-1, 2)

    def _make_caches(self) -> None:
        self._manifest = lru_cache(maxsize=self._num_manifests_kept)(self._load)
        self._tar = lru_cache(maxsize=_NUM_TARS_OPEN)(self._open)

    def __getstate__(self) -> dict[str, Any]:
        """Without open files and manifests: the process that unpickles opens its own."""
        return {
            name: value for name, value in vars(self).items() if name not in ("_manifest", "_tar")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_caches()


def positions(
    start: int, rank: int, world_size: int, end: int | None = None
) -> Iterator[int]:
    """The positions of one rank: start + rank, then every world_size-th, below `end` if given.

    Without an end it never ends. Ranks take equally many when world_size divides end - start.
    Raises ValueError unless 0 <= rank < world_size and start >= 0.
    """
    if start < 0 or not 0 <= rank < world_size:
        raise ValueError(
            f"start, rank, world_size: got {start}, {rank}, {world_size}, "
            "expected start >= 0 and 0 <= rank < world_size"
        )
    if end is None:
        return itertools.count(start + rank, world_size)
    return iter(range(start + rank, end, world_size))
