"""Finds keys that are in more than one shard, with 16 bytes a key.

A key is known by 128 bits of its SHA-256: nobody can make keys that are taken for each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Generic, TypeVar

import numpy as np

_NUM_BYTES = 16
Shard = TypeVar("Shard")


class KeyDigests(Generic[Shard]):
    """The keys of shards, in the order in which they are added."""

    def __init__(self) -> None:
        self._digests = bytearray()
        self._shards: list[Shard] = []
        self._starts: list[int] = []  # of each shard's keys among all

    def add(self, shard: Shard, keys: Iterable[str]) -> None:
        """Add the keys of a shard."""
        self._shards.append(shard)
        self._starts.append(len(self._digests) // _NUM_BYTES)
        for key in keys:
            self._digests += hashlib.sha256(key.encode()).digest()[:_NUM_BYTES]

    def repeated(self) -> list[list[tuple[Shard, int]]]:
        """For each key that comes more than once, where it does: (shard, row among its keys), in
        the order of adding; keys in the order of their first place."""
        digests = np.frombuffer(bytes(self._digests), np.uint64).reshape(-1, 2)
        order = np.lexsort(digests.T)  # stable: rows of one key ascend
        is_same = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
        groups: list[list[int]] = []
        last = -2
        for place in np.flatnonzero(is_same).tolist():
            if place != last + 1:
                groups.append([int(order[place])])
            groups[-1].append(int(order[place + 1]))
            last = place
        return [[self._place(row) for row in group] for group in sorted(groups)]

    def _place(self, row: int) -> tuple[Shard, int]:
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._shards[shard], row - self._starts[shard]
