"""The order of training samples: arithmetic, not a queue.

Order is a pure function from a position to a micro-batch, the same for every number of ranks and
workers: the ranks take turns at the positions of one common sequence. So the whole state of the
data is the next position, and it stays good for any other number of ranks.

How an epoch is laid out
1. All shards are permuted, each epoch in another order.
2. The permuted shards are cut into windows of (nearly) equal size, at most `window_num_shards`.
   The samples of a window are permuted: mixing reaches over a window, memory ends there.
3. Samples of similar shape (width and height, after `resize`, rounded up to `shape_step_px`) form a
   group. Each group
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

What it costs, for S shards in M windows and G groups: one pass over the shapes at the start, which
counts each shard's samples of each group (2 bytes a shard and group); once an epoch the running
counts (4 bytes a window and group); once a window its own permutation, for which the shapes of its
samples are looked up. Nothing but bisections depends on S or M after that, and nothing on how far
the epoch has come. Shapes may be a memory map: processes that read the same set share it.

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

>>> l, p = (640, 480), (480, 640)
>>> shapes = [l, p, l,  l, l,  l, l, l, l,  p,  l, l, l]
>>> order = Order(shapes, [3, 2, 4, 1, 3],
...               seed=1, micro_batch_size=3, window_num_shards=2, shape_step_px=64)
>>> order.num_micro_batches
5
>>> sorted(len(order[position].samples) for position in range(10, 15))
[2, 2, 3, 3, 3]
>>> order[11].epoch
2
>>> order.epochs(11)
(2.2,)

Randomness: permutations sort raw words of PCG64, seeded by (seed, epoch, purpose, window). numpy
keeps bit generators and seed sequences stable over its releases, which it does not promise of
Generator.permutation, so a checkpoint's position means the same samples under another numpy.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from boxless.errors import BoxlessError
from sharding.format.resize import Resize

# What a permutation is for; part of its seed.
_SHARDS, _SAMPLES, _MICRO_BATCHES = range(3)
# Windows whose permuted samples are kept: the current one and those that carried samples into it.
_NUM_WINDOWS_KEPT = 16
# How many are read at a time, which bounds the memory of going over all of them.
_NUM_SAMPLES_AT_ONCE, _NUM_WINDOWS_AT_ONCE = 1 << 18, 1 << 12
# Entries of the table from shape to group: 8192 x 8192 steps.
_MOST_SHAPES = 1 << 26


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """The unit of work: a position, its epoch, and (shard index, sample index) of each sample.

    source: which set the shards are of, where several are mixed (sharding.order.mixture); else 0.
    visits: which of its visits of the epoch each sample's is (sharding.order.visits); empty where
        each comes once.
    """

    position: int
    epoch: int
    samples: tuple[tuple[int, int], ...]
    source: int = 0
    visits: tuple[int, ...] = ()


class Plan(Protocol):
    """What a stream of micro-batches follows: an Order of one set, or a Mixture of several."""

    @property
    def num_micro_batches(self) -> int:
        """Positions after which the plan repeats: an Order's epoch, a Mixture's cycle."""

    def __getitem__(self, position: int) -> MicroBatch:
        """The micro-batch at `position`; IndexError below 0, there is no end above."""

    def epochs(self, position: int) -> tuple[float, ...]:
        """How often each set has been gone through before `position`."""


@dataclass(frozen=True, kw_only=True)
class _Epoch:
    """How one epoch is laid out over its M windows.

    shards: permuted shard indices [S]. edges: windows' bounds in shards [M + 1].
    received: samples poured into each queue before a window [G, M + 1]; a queue's lie side by side.
    given: micro-batches that left before a window [M + 1].
    """

    shards: np.ndarray
    edges: np.ndarray
    received: np.ndarray
    given: np.ndarray


class Order:
    """order[position] is the MicroBatch at a position from 0 on; positions run on over epochs.

    shapes: [N, 2], width and height in pixels of all samples, shard after shard; an array of ints
        or a memory map, which is left where it is.
    shard_sizes: [S], how many of them each shard has; 0 is allowed.
    seed: of all permutations, >= 0.
    micro_batch_size: samples of a micro-batch; the last of a group and epoch may be smaller.
    window_num_shards: how many shards are mixed at most.
    shape_step_px: pictures whose width and height, rounded up to it, agree share micro-batches.
    resize: what training makes of the sizes, which are compared after it; None for nothing.

    Raises ValueError for settings out of range, for sizes that do not add up to the shapes, for
    sets without samples, and for more than 2^26 possible shapes. A copy by pickle takes the shapes
    along, 4 bytes a sample: workers that are forked share them instead.
    """

    def __init__(
        self,
        shapes: ArrayLike,
        shard_sizes: ArrayLike,
        *,
        seed: int,
        micro_batch_size: int,
        window_num_shards: int,
        shape_step_px: int,
        resize: Resize | None = None,
    ) -> None:
        least = {"micro_batch_size": 1, "window_num_shards": 1, "shape_step_px": 1, "seed": 0}
        got = dict(
            micro_batch_size=micro_batch_size,
            window_num_shards=window_num_shards,
            shape_step_px=shape_step_px,
            seed=seed,
        )
        for name, value in got.items():
            if value < least[name]:
                raise BoxlessError(f"{name}: got {value}, expected at least {least[name]}")
            if value >= 2**63 and name != "seed":
                raise BoxlessError(f"{name}: got {value}, expected 64 bits at most")
        self._shapes = np.asarray(shapes)
        # Where each shard's samples start among the shapes, [S + 1].
        self._starts = np.concatenate([[0], np.cumsum(np.asarray(shard_sizes, np.int64))])
        if self.num_samples == 0:
            raise BoxlessError(f"shard_sizes: got no sample in {len(self._starts) - 1} shards")
        if self._shapes.shape != (self.num_samples, 2):
            raise BoxlessError(
                f"shapes: got {self._shapes.shape}, expected {(self.num_samples, 2)} of shard_sizes"
            )
        self._seed = seed
        self._micro_batch_size = micro_batch_size
        self._window_num_shards = window_num_shards
        self._shape_step_px = shape_step_px
        self._resize = resize
        longest_px = resize.longer_px if resize else int(self._shapes.max())
        # More than any side's steps, so that a width and a height make one number: a shape code.
        self._num_steps = -(-longest_px // shape_step_px) + 1
        num_groups, self._group_of = self._find_groups()
        self._counts = self._count(num_groups)
        totals = self._counts.sum(0, dtype=np.int64)
        self.num_micro_batches = int((-(-totals // micro_batch_size)).sum())
        self._make_caches()

    @property
    def num_samples(self) -> int:
        """Samples an epoch."""
        return int(self._starts[-1])

    def epochs(self, position: int) -> tuple[float, ...]:
        """How often the set has been gone through before `position`, as the only entry."""
        return (position / self.num_micro_batches,)

    def __getitem__(self, position: int) -> MicroBatch:
        """The micro-batch at `position`; IndexError below 0, there is no end above."""
        if position < 0:
            raise IndexError(f"position: got {position}, expected at least 0")
        epoch, place = divmod(int(position), self.num_micro_batches)
        given = self._epoch(epoch).given
        window = bisect_right(given, place) - 1
        samples = self._window_micro_batches(epoch, window)[place - given[window]]
        pairs = tuple((shard, sample) for shard, sample in samples.tolist())
        return MicroBatch(position=int(position), epoch=epoch, samples=pairs)

    def _runs(self) -> Iterator[tuple[int, int]]:
        """Runs of whole shards, (first, stop), of not too many samples together."""
        first, num_shards = 0, len(self._starts) - 1
        while first < num_shards:
            most = self._starts[first] + _NUM_SAMPLES_AT_ONCE
            stop = max(first + 1, int(np.searchsorted(self._starts, most, side="right")) - 1)
            yield first, stop
            first = stop

    def _shape_codes(self, first: int, stop: int) -> np.ndarray:
        """width * num_steps + height, both in steps, of the samples of shards, [n]."""
        shapes = self._shapes[self._starts[first] : self._starts[stop]]
        sizes = self._resize.sizes(shapes) if self._resize else shapes.astype(np.int64)
        steps = -(-sizes // self._shape_step_px)
        return steps[:, 0] * self._num_steps + steps[:, 1]

    def _find_groups(self) -> tuple[int, np.ndarray]:
        """The number of groups, and the table from shape code to group; groups rise with codes."""
        if self._num_steps**2 > _MOST_SHAPES:
            raise BoxlessError(
                f"shape_step_px: got {self._shape_step_px} for pictures of up to "
                f"{self._shapes.max()} px, expected at most {math.isqrt(_MOST_SHAPES)} steps a side"
            )
        seen = np.zeros(self._num_steps**2, bool)
        for first, stop in self._runs():
            seen[self._shape_codes(first, stop)] = True
        found = np.flatnonzero(seen)
        group_of = np.zeros(len(seen), np.min_scalar_type(len(found)))
        group_of[found] = np.arange(len(found))
        return len(found), group_of

    def _count(self, num_groups: int) -> np.ndarray:
        """The samples of each group in each shard, [S, G]."""
        sizes = np.diff(self._starts)
        counts = np.zeros((len(sizes), num_groups), np.min_scalar_type(sizes.max()))
        for first, stop in self._runs():
            rows = np.repeat(np.arange(stop - first) * num_groups, sizes[first:stop])
            cells = rows + self._group_of[self._shape_codes(first, stop)]
            found = np.bincount(cells, minlength=(stop - first) * num_groups)
            counts[first:stop] = found.reshape(-1, num_groups)
        return counts

    def _epoch_layout(self, epoch: int) -> _Epoch:
        """Steps 1 and 2, and the running counts of step 3, of an epoch."""
        num_shards, num_groups = self._counts.shape
        shards = self._permutation(num_shards, epoch, _SHARDS, 0)
        num_windows = -(-num_shards // self._window_num_shards)
        edges = np.arange(num_windows + 1) * num_shards // num_windows
        received = np.zeros((num_groups, num_windows + 1), np.min_scalar_type(self.num_samples))
        for first in range(0, num_windows, _NUM_WINDOWS_AT_ONCE):
            inside = edges[first : first + _NUM_WINDOWS_AT_ONCE + 1]
            counts = self._counts[shards[inside[0] : inside[-1]]]
            poured = np.add.reduceat(counts, inside[:-1] - inside[0], axis=0, dtype=np.int64)
            received[:, first + 1 : first + len(inside)] = poured.T
        given = np.zeros(num_windows + 1, np.int64)
        for queue in received:
            np.cumsum(queue, out=queue)
            given += queue.astype(np.int64) // self._micro_batch_size
        given[-1] = self.num_micro_batches
        return _Epoch(shards=shards, edges=edges, received=received, given=given)

    def _received(self, epoch: int, window: int) -> np.ndarray:
        """Samples poured into each queue before a window and up to its end, [2, G]."""
        return self._epoch(epoch).received[:, window : window + 2].T.astype(np.int64)

    def _window_samples(self, epoch: int, window: int) -> np.ndarray:
        """The samples of a window, permuted, then brought together by group (stably).

        [n, 2], (shard, sample).
        """
        plan = self._epoch(epoch)
        shards = plan.shards[plan.edges[window] : plan.edges[window + 1]]
        sizes = self._starts[shards + 1] - self._starts[shards]
        samples = np.empty((sizes.sum(), 2), np.int64)
        samples[:, 0] = np.repeat(shards, sizes)
        samples[:, 1] = np.arange(len(samples)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        groups = self._group_of[
            np.concatenate([self._shape_codes(shard, shard + 1) for shard in shards])
        ]
        permutation = self._permutation(len(samples), epoch, _SAMPLES, window)
        return samples[permutation[np.argsort(groups[permutation], kind="stable")]]

    def _carried_ranges(self, epoch: int, window: int) -> dict[int, list[tuple[int, int, int]]]:
        """What leaves in a window, by the window that poured it: (group, first, stop) in its
        queue."""
        plan, size = self._epoch(epoch), self._micro_batch_size
        before, after = self._received(epoch, window)
        firsts = before // size * size
        stops = after if window + 2 == len(plan.edges) else after // size * size
        wanted: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for group in np.flatnonzero(firsts < stops).tolist():
            queue, first, stop = plan.received[group], int(firsts[group]), int(stops[group])
            while first < stop:
                source = bisect_right(queue, first) - 1
                until = min(stop, int(queue[source + 1]))
                wanted[source].append((group, first, until))
                first = until
        return wanted

    def _make_micro_batches(self, epoch: int, window: int) -> list[np.ndarray]:
        """The micro-batches that belong to a window, permuted: steps 3 and 4."""
        queues: dict[int, list[np.ndarray]] = defaultdict(list)
        # One window after the other, for many rare groups may want samples of the same one.
        for source, pieces in sorted(self._carried_ranges(epoch, window).items()):
            before, after = self._received(epoch, source)
            # Groups lie one after the other in what a window pours: from queue places to there.
            shift = np.cumsum(after - before) - after
            poured = self._cached_window_samples(epoch, source)
            for group, first, stop in pieces:
                queues[group].append(poured[shift[group] + first : shift[group] + stop])
        full = []
        for group in sorted(queues):
            queue = np.concatenate(queues[group])
            size = self._micro_batch_size
            full += [queue[start : start + size] for start in range(0, len(queue), size)]
        return [full[i] for i in self._permutation(len(full), epoch, _MICRO_BATCHES, window)]

    def _permutation(self, num: int, epoch: int, purpose: int, window: int) -> np.ndarray:
        words = np.random.SeedSequence(self._seed, spawn_key=(epoch, purpose, window))
        return np.argsort(np.random.PCG64(words).random_raw(num), kind="stable")

    def _make_caches(self) -> None:
        self._epoch = lru_cache(maxsize=2)(self._epoch_layout)
        self._cached_window_samples = lru_cache(maxsize=_NUM_WINDOWS_KEPT)(self._window_samples)
        self._window_micro_batches = lru_cache(maxsize=2)(self._make_micro_batches)

    def __getstate__(self) -> dict[str, Any]:
        """Without the caches, which cannot be pickled and are cheap to fill again."""
        return {
            name: value
            for name, value in vars(self).items()
            if name not in ("_epoch", "_cached_window_samples", "_window_micro_batches")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_caches()
