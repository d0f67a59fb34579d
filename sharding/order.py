"""The order of training samples: arithmetic, not a queue.

Order is a pure function from a position to a micro-batch, the same for every number of ranks and
workers: rank r of R takes positions r, r + R, r + 2R, ... of one common sequence. So the whole
state of the data is the next position, and it stays good for any other number of ranks.

How an epoch is laid out
1. The shards are permuted, all of them, anew each epoch.
2. The permuted shards are cut into windows of (nearly) equal size, at most `window_num_shards`.
   The samples of a window are permuted: mixing reaches over a window, memory ends there.
3. Samples of like shape (width and height rounded up to `shape_step_px`) form a group. Each group
   is a queue into which the windows pour their samples in turn, and whenever a queue holds
   `micro_batch_size` samples they leave as a micro-batch; it belongs to the window that filled it.
   What is left in the queues after the last window leaves as one smaller micro-batch a group.
4. The micro-batches of a window are permuted.

Why the number of micro-batches is the same every epoch: a group of n samples gives exactly
ceil(n / micro_batch_size), wherever the shards went, and at most one of them is ragged. So epoch e
is the positions from e * N up to (e + 1) * N, N being the sum over the groups, and epoch and place
of any position are one division. The window of a place is found by bisection: after the windows
0..w a group that has received c samples has given c // micro_batch_size micro-batches. The sample
at place i of a queue is found by bisection too, in the running counts c, so a carried sample costs
the permutation of the window it came from, and nothing before it is gone through.

A worked example: five shards of 3, 2, 4, 1 and 3 samples; in shard 0 one picture and in shard 3 the
only picture are portraits (group p), all others landscapes (group l); micro-batches of 3, windows
of at most 2 shards. N = ceil(11 / 3) + ceil(2 / 3) = 4 + 1 = 5. Say that the shards of this epoch
come as 2 0 4 1 3: five shards need three windows, of 1, 2 and 2 shards.

    window   shards   pours in   received so far   leaves               stays
    0        2        4l         4l                l[0:3]               1l
    1        0 4      1p 5l      1p 9l             l[3:6] l[6:9]        1p
    2        1 3      1p 2l      2p 11l            l[9:11] p[0:2]       -

Micro-batches after each window: 1, 3, 5 (the last window rounds up). Position 11 is epoch
11 // 5 = 2, place 11 % 5 = 1; if the table is that of epoch 2, place 1 lies in window 1, which
holds places 1 and 2: l[3:6] and l[6:9], permuted. l[3:6] begins with the landscape that window 0
left over. In code:

>>> wide, tall = (640, 480), (480, 640)
>>> shapes = [[wide, tall, wide], [wide] * 2, [wide] * 4, [tall], [wide] * 3]
>>> order = Order(shapes, seed=1, micro_batch_size=3, window_num_shards=2, shape_step_px=64)
>>> order.num_micro_batches
5
>>> sorted(len(order[position].samples) for position in range(10, 15))
[2, 2, 3, 3, 3]
>>> order[11].epoch
2

Randomness: permutations sort raw words of PCG64, seeded by (seed, epoch, purpose, window). numpy
keeps bit generators and seed sequences stable over its releases, which it does not promise of
Generator.permutation, so a checkpoint's position means the same samples under another numpy.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

# What a permutation is for; part of its seed.
_SHARDS, _SAMPLES, _MICRO_BATCHES = range(3)
# Windows whose permuted samples are kept: the current one and those that carried samples into it.
_NUM_POURS_KEPT = 16


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """The unit of work: a position, its epoch, and (shard index, sample index) of each sample."""

    position: int
    epoch: int
    samples: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class _Epoch:
    """How one epoch is laid out over its M windows.

    shards: permuted shard indices [S]. edges: windows' bounds in shards [M + 1].
    received: samples poured into each queue before a window [M + 1, G].
    given: micro-batches that left before a window [M + 1].
    """

    shards: np.ndarray
    edges: np.ndarray
    received: np.ndarray
    given: np.ndarray


class Order:
    """order[position] is the MicroBatch at a position from 0 on; positions run on over epochs.

    shapes_per_shard: for each shard an array [n, 2] of width and height in pixels, n may be 0.
    seed: of all permutations, >= 0.
    micro_batch_size: samples of a micro-batch; the last of a group and epoch may be smaller.
    window_num_shards: how many shards are mixed at most.
    shape_step_px: pictures whose width and height, rounded up to it, agree share micro-batches.

    Raises ValueError for settings out of range and for sets without samples.
    Memory: 2 to 4 bytes a sample, and a few windows.
    """

    def __init__(
        self,
        shapes_per_shard: Sequence[ArrayLike],
        *,
        seed: int,
        micro_batch_size: int,
        window_num_shards: int,
        shape_step_px: int,
    ) -> None:
        least = {"micro_batch_size": 1, "window_num_shards": 1, "shape_step_px": 1, "seed": 0}
        got = dict(micro_batch_size=micro_batch_size, window_num_shards=window_num_shards,
                   shape_step_px=shape_step_px, seed=seed)
        for name, value in got.items():
            if value < least[name]:
                raise ValueError(f"{name}: got {value}, expected at least {least[name]}")
        shapes = [np.asarray(shape, np.int64).reshape(-1, 2) for shape in shapes_per_shard]
        if sum(map(len, shapes)) == 0:
            raise ValueError(f"shapes_per_shard: got no sample in {len(shapes)} shards")
        self._seed = seed
        self._micro_batch_size = micro_batch_size
        self._window_num_shards = window_num_shards
        # Where each shard's samples start in the data set's own numbering, [S + 1].
        self._starts = np.cumsum([0, *map(len, shapes)])
        steps = -(-np.concatenate(shapes) // shape_step_px)
        groups, group_of = np.unique(steps[:, 0] << 32 | steps[:, 1], return_inverse=True)
        self._group_of = group_of.astype(np.min_scalar_type(len(groups)))
        self._counts = np.stack([
            np.bincount(self._group_of[start:stop], minlength=len(groups))
            for start, stop in zip(self._starts[:-1], self._starts[1:])
        ])
        self.num_micro_batches = int((-(-self._counts.sum(0) // micro_batch_size)).sum())
        self._make_caches()

    @property
    def num_samples(self) -> int:
        """Samples an epoch."""
        return int(self._starts[-1])

    def __getitem__(self, position: int) -> MicroBatch:
        """The micro-batch at `position`; IndexError below 0, there is no end above."""
        if position < 0:
            raise IndexError(f"position: got {position}, expected at least 0")
        epoch, place = divmod(int(position), self.num_micro_batches)
        given = self._epoch(epoch).given
        window = int(np.searchsorted(given, place, side="right")) - 1
        samples = self._leave(epoch, window)[place - given[window]]
        shards = np.searchsorted(self._starts, samples, side="right") - 1
        within = samples - self._starts[shards]
        pairs = tuple(zip(shards.tolist(), within.tolist()))
        return MicroBatch(position=int(position), epoch=epoch, samples=pairs)

    def _lay_out(self, epoch: int) -> _Epoch:
        """Steps 1 and 2, and the running counts of step 3, of an epoch."""
        num_shards = len(self._counts)
        shards = self._permutation(num_shards, epoch, _SHARDS, 0)
        num_windows = -(-num_shards // self._window_num_shards)
        edges = np.arange(num_windows + 1) * num_shards // num_windows
        poured = np.cumsum(self._counts[shards], axis=0)
        received = np.concatenate([np.zeros_like(poured[:1]), poured])[edges]
        given = (received // self._micro_batch_size).sum(1)
        given[-1] = self.num_micro_batches
        return _Epoch(shards=shards, edges=edges, received=received, given=given)

    def _pour(self, epoch: int, window: int) -> np.ndarray:
        """The samples of a window, permuted, then brought together by group (stably)."""
        plan = self._epoch(epoch)
        shards = plan.shards[plan.edges[window]:plan.edges[window + 1]]
        samples = np.concatenate([
            np.arange(self._starts[shard], self._starts[shard + 1]) for shard in shards
        ])
        samples = samples[self._permutation(len(samples), epoch, _SAMPLES, window)]
        return samples[np.argsort(self._group_of[samples], kind="stable")]

    def _wanted(self, epoch: int, window: int) -> dict[int, list[tuple[int, int, int]]]:
        """What leaves in a window, by the window that poured it: (group, first, stop) in its queue.
        """
        plan, size = self._epoch(epoch), self._micro_batch_size
        last = window + 2 == len(plan.edges)
        wanted: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for group, (before, after) in enumerate(plan.received[window:window + 2].T.tolist()):
            first, stop = before // size * size, after if last else after // size * size
            while first < stop:
                received = plan.received[:, group]
                source = int(np.searchsorted(received, first, side="right")) - 1
                until = min(stop, int(received[source + 1]))
                wanted[source].append((group, first, until))
                first = until
        return wanted

    def _fill(self, epoch: int, window: int) -> list[np.ndarray]:
        """The micro-batches that belong to a window, permuted: steps 3 and 4."""
        queues: dict[int, list[np.ndarray]] = defaultdict(list)
        # One window after the other, for many rare groups may want samples of the same one.
        for source, pieces in sorted(self._wanted(epoch, window).items()):
            before, after = self._epoch(epoch).received[source:source + 2]
            # Groups lie one after the other in what a window pours: from queue places to there.
            shift = np.cumsum(after - before) - after
            poured = self._poured(epoch, source)
            for group, first, stop in pieces:
                queues[group].append(poured[shift[group] + first:shift[group] + stop])
        full = []
        for group in sorted(queues):
            queue = np.concatenate(queues[group])
            size = self._micro_batch_size
            full += [queue[start:start + size] for start in range(0, len(queue), size)]
        return [full[i] for i in self._permutation(len(full), epoch, _MICRO_BATCHES, window)]

    def _permutation(self, num: int, epoch: int, purpose: int, window: int) -> np.ndarray:
        words = np.random.SeedSequence(self._seed, spawn_key=(epoch, purpose, window))
        return np.argsort(np.random.PCG64(words).random_raw(num), kind="stable")

    def _make_caches(self) -> None:
        self._epoch = lru_cache(maxsize=2)(self._lay_out)
        self._poured = lru_cache(maxsize=_NUM_POURS_KEPT)(self._pour)
        self._leave = lru_cache(maxsize=2)(self._fill)

    def __getstate__(self) -> dict[str, Any]:
        """Without the caches, which cannot be pickled and are cheap to fill again."""
        return {
            name: value for name, value in vars(self).items()
            if name not in ("_epoch", "_poured", "_leave")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_caches()
