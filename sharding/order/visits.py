"""An order in which a sample comes a given number of times an epoch.

A visit is to this order what a sample is to `sharding.order.order`: it is permuted, grouped by
shape and put into micro-batches on its own, so that the visits of a sample lie anywhere in the
epoch, and may share a micro-batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from boxless.errors import BoxlessError
from sharding.order.order import MicroBatch, Order


class VisitOrder:
    """order[position] is the MicroBatch at a position, with the number of each sample's visit.

    shapes [N, 2], shard_sizes [S] and `settings` are those of `Order`. num_visits [N]: how often
    each sample comes an epoch, at least once. Raises ValueError for what `Order` refuses, and for
    other numbers of visits.
    """

    def __init__(
        self, shapes: ArrayLike, shard_sizes: ArrayLike, num_visits: ArrayLike, **settings: Any
    ) -> None:
        shapes, visits = np.asarray(shapes), np.asarray(num_visits)
        if visits.shape != (len(shapes),) or (len(visits) and visits.min() < 1):
            raise BoxlessError(
                f"num_visits: got {visits.shape}, the least {visits.min(initial=1)}, expected a "
                f"number of at least 1 for each of {len(shapes)} samples"
            )
        # Where each shard's samples start [S + 1], and each sample's visits [N + 1].
        self._starts = np.concatenate([[0], np.cumsum(np.asarray(shard_sizes, np.int64))])
        self._first_visits = np.concatenate([[0], np.cumsum(visits, dtype=np.int64)])
        sizes = np.diff(self._first_visits[self._starts])
        self._order = Order(np.repeat(shapes, visits, axis=0), sizes, **settings)

    @property
    def num_micro_batches(self) -> int:
        """Positions of an epoch."""
        return self._order.num_micro_batches

    def epochs(self, position: int) -> tuple[float, ...]:
        """How often the set has been gone through before `position`, as the only entry."""
        return self._order.epochs(position)

    def __getitem__(self, position: int) -> MicroBatch:
        """The micro-batch at `position`; IndexError below 0, there is no end above."""
        batch = self._order[position]
        shards, places = np.array(batch.samples).T
        visits = self._first_visits[self._starts[shards]] + places
        samples = np.searchsorted(self._first_visits, visits, side="right") - 1
        own = np.stack([shards, samples - self._starts[shards]], axis=1)
        return replace(
            batch,
            samples=tuple((shard, sample) for shard, sample in own.tolist()),
            visits=tuple((visits - self._first_visits[samples]).tolist()),
        )
