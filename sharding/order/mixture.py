"""Mixes several sets in exact ratios: which set has which position is arithmetic.

Mixture is to sets what sharding.order.order is to shards: a pure function from a position to a
micro-batch, reached by sharding.reading.stream when its sources have weights. Sets without weights
need no Mixture: they are one Order over all their shards.

How positions are dealt
1. A cycle is C = sum(weights) positions and gives set k exactly weights[k] of them, so the ratios
   are exact after every cycle, not on average.
2. Within a cycle, set k's turn j (from 0 on) falls at the moment (j + u) / weights[k], u drawn from
   0 to 1 for each cycle, set and turn; turns in the order of their moments are the cycle. So a
   set's turns are spread evenly, one in each weights[k]-th of the cycle, and follow no beat.
3. Each set goes through its own Order, at its own pace: turn j of cycle c is position
   c * weights[k] + j of set k. So each of its samples comes once in each epoch of that set,
   however long the others are.

A worked example: set 0 has 4 micro-batches an epoch and weight 3, set 1 has 5 and weight 2. C = 5.
Position 13 is cycle 13 // 5 = 2, place 13 % 5 = 3. Say that this cycle's moments come as

    moment   0.11    0.36    0.66    0.73    0.89
    set      0       1       0       1       0
    turn     0       0       1       1       2

then position 13 belongs to set 1, turn 1, and is its position 2 * 2 + 1 = 5: the first of its
second epoch, 5 // 5 = 1. Before position 13 set 0 has gone through 2 * 3 + 2 = 8 micro-batches, two
epochs, and set 1 through 5, one epoch. In code:

>>> from sharding.order.order import Order
>>> small = Order([(8, 8)] * 4, [4], seed=0,
...               micro_batch_size=1, window_num_shards=1, shape_step_px=8)
>>> large = Order([(8, 8)] * 5, [5], seed=0,
...               micro_batch_size=1, window_num_shards=1, shape_step_px=8)
>>> mixture = Mixture([small, large], [3, 2], seed=2)
>>> mixture.num_micro_batches
5
>>> [mixture[position].source for position in range(10, 15)]
[0, 1, 0, 1, 0]
>>> mixture[13].source, mixture[13].epoch, mixture[13].samples == large[5].samples
(1, 1, True)
>>> mixture.epochs(13)
(2.0, 1.0)

Ratios are of micro-batches. Of samples they are as exact as micro-batches are full: an Order's last
one of a group and epoch may be smaller. Moments are quotients of IEEE doubles made of raw words of
PCG64, so they are the same on every machine and under every numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from boxless.errors import BoxlessError
from sharding.order.order import MicroBatch, Plan

LONGEST_CYCLE = 100_000_000
"""The largest sum of weights: a cycle lies in memory."""
_NUM_CYCLES_KEPT = 4


@dataclass(frozen=True, kw_only=True)
class _Cycle:
    """A cycle of C positions over K sets.

    sources: the set of each place [C]. before: turns of each set before a place [C, K].
    """

    sources: np.ndarray
    before: np.ndarray


class Mixture:
    """mixture[position] is a micro-batch of one of the orders; `source` says of which.

    orders: one a set. weights: micro-batches of each in a cycle, at least 1. seed: of the places
    inside cycles, >= 0. Raises ValueError for other weights and seeds.

    Memory and the first access to a cycle: 8 bytes a set and position of a cycle, so a sum of
    weights above `LONGEST_CYCLE` is refused.
    """

    def __init__(self, orders: Sequence[Plan], weights: Sequence[int], seed: int) -> None:
        if not orders or len(orders) != len(weights) or min(weights) < 1:
            raise BoxlessError(
                f"weights: got {list(weights)} for {len(orders)} sets, "
                "expected an int of at least 1 for each"
            )
        if seed < 0:
            raise BoxlessError(f"seed: got {seed}, expected at least 0")
        if sum(map(int, weights)) > LONGEST_CYCLE:
            raise BoxlessError(
                f"weights: got {list(weights)}, expected a sum of at most {LONGEST_CYCLE}; divide "
                "all by the same number"
            )
        self._orders = tuple(orders)
        self._weights = np.asarray(weights, np.int64)
        self._seed = seed
        self._make_caches()

    @property
    def num_micro_batches(self) -> int:
        """Positions of a cycle, after which every set has had exactly its weight of them."""
        return int(self._weights.sum())

    def __getitem__(self, position: int) -> MicroBatch:
        """The micro-batch at `position`, its epoch that of its own set; IndexError below 0."""
        source = int(self._cycle_of(position).sources[position % self.num_micro_batches])
        batch = self._orders[source][self._given(position)[source]]
        return replace(batch, position=int(position), source=source)

    def epochs(self, position: int) -> tuple[float, ...]:
        """How often each set has been gone through before `position`."""
        return tuple(
            num / order.num_micro_batches for num, order in zip(self._given(position), self._orders)
        )

    def _given(self, position: int) -> list[int]:
        """The turns that each set has had before `position`."""
        cycle, place = divmod(position, self.num_micro_batches)
        before = self._cycle_of(position).before[place]
        return [cycle * int(weight) + int(num) for weight, num in zip(self._weights, before)]

    def _cycle_of(self, position: int) -> _Cycle:
        if position < 0:
            raise IndexError(f"position: got {position}, expected at least 0")
        return self._cycle(int(position) // self.num_micro_batches)

    def _cycle_layout(self, cycle: int) -> _Cycle:
        """Step 2: the sets of a cycle's places, and their turns before each."""
        sets = np.repeat(np.arange(len(self._weights)), self._weights)
        turns = np.concatenate([np.arange(weight) for weight in self._weights])
        words = np.random.PCG64(np.random.SeedSequence(self._seed, spawn_key=(cycle,)))
        # The upper 53 bits are what a double holds.
        jitter = (words.random_raw(len(sets)) >> np.uint64(11)) * 2.0**-53
        sources = sets[np.argsort((turns + jitter) / self._weights[sets], kind="stable")]
        had = np.cumsum(sources[:, None] == np.arange(len(self._weights)), axis=0)
        before = np.concatenate([np.zeros_like(had[:1]), had[:-1]])
        return _Cycle(sources=sources, before=before)

    def _make_caches(self) -> None:
        self._cycle = lru_cache(maxsize=_NUM_CYCLES_KEPT)(self._cycle_layout)

    def __getstate__(self) -> dict[str, Any]:
        """Without the cache, which cannot be pickled and is cheap to fill again."""
        return {name: value for name, value in vars(self).items() if name != "_cycle"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_caches()
