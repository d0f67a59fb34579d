"""Simulates three methods of shuffling over two epochs, sample by sample.

- ours: the positions of a plan (sharding.order.order, sharding.order.mixture), in their order.
- webdataset: its own stages on sample numbers in place of tars. Shards go to ranks and workers as
  split_by_node and split_by_worker deal them, then through detshuffle, so that shards come in
  another order each epoch (its default repeats one order), then samples through shuffle; several
  sets through RandomMix. Ranks and workers give micro-batches in turn.
- permutation: the samples that ours had, in any order at all: the best that can be had, at the
  price of reading them from everywhere at once.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from boxless.errors import BoxlessError
from sharding.order.order import Plan


@dataclass(frozen=True, kw_only=True)
class ShuffleConfig:
    """What is measured, and how webdataset is set.

    split, seed, micro_batch_size, window_num_shards, shape_step_px: as for training.
    buffer_num_samples, buffer_num_shards: of webdataset's shuffles of samples and of shards.
    num_ranks, num_workers: among whom webdataset deals the shards; workers are a rank's.
    most_num_samples: of larger sets the first shards are measured, up to so many samples; figures
        change little with more.
    """

    split: str = "train"
    seed: int = 0
    micro_batch_size: int = 32
    window_num_shards: int = 8
    shape_step_px: int = 64
    buffer_num_samples: int = 1000
    buffer_num_shards: int = 100
    num_ranks: int = 8
    num_workers: int = 4
    most_num_samples: int = 1_000_000

    def __post_init__(self) -> None:
        for name in (
            "buffer_num_samples",
            "buffer_num_shards",
            "num_ranks",
            "num_workers",
            "most_num_samples",
        ):
            if getattr(self, name) < 1:
                raise BoxlessError(f"{name}: got {getattr(self, name)}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class SampleSequence:
    """Samples in the order in which they came.

    samples: their numbers, counted through all sets and shards [T].
    edges: bounds of the micro-batches among them [B + 1].
    """

    samples: np.ndarray
    edges: np.ndarray


@dataclass(frozen=True, kw_only=True)
class ShuffleMethod:
    """One way of shuffling: its name, and two epochs, one after the other."""

    name: str
    first: SampleSequence
    second: SampleSequence


def compare(
    plan: Plan, sizes: Sequence[Sequence[int]], config: ShuffleConfig
) -> list[ShuffleMethod]:
    """Two epochs each of ours, of webdataset and of a permutation.

    plan: an Order of all shards of all sets, one after the other, or a Mixture of the sets.
    sizes: for each set the sizes of its shards.
    An epoch of a Mixture is the cycles in which each set has been gone through at least once.
    """
    cycle = plan.num_micro_batches
    num = cycle * int(np.ceil(1 / min(plan.epochs(cycle))))
    ours = [_followed(plan, sizes, epoch * num, num) for epoch in range(2)]
    shares = batch_shares(ours[0], sizes).mean(0)
    stock = [
        _through_webdataset(sizes, shares, len(ours[epoch].samples), epoch, config)
        for epoch in range(2)
    ]
    rng = np.random.default_rng(config.seed)
    best = [SampleSequence(samples=rng.permutation(one.samples), edges=one.edges) for one in ours]
    named = {"ours": ours, "webdataset": stock, "permutation": best}
    return [
        ShuffleMethod(name=name, first=first, second=second)
        for name, (first, second) in named.items()
    ]


def _followed(plan: Plan, sizes: Sequence[Sequence[int]], first: int, num: int) -> SampleSequence:
    """What `num` positions of a plan give, from `first` on."""
    starts = shard_starts(sizes)
    first_shards = np.cumsum([0, *map(len, sizes)])
    pieces = []
    for position in range(first, first + num):
        batch = plan[position]
        shards, within = np.array(batch.samples).T
        pieces.append(starts[first_shards[batch.source] + shards] + within)
    return _joined(pieces)


def shard_starts(sizes: Sequence[Sequence[int]]) -> np.ndarray:
    """Where each shard's samples start, counted through all sets [S + 1]."""
    return np.cumsum([0, *(size for one in sizes for size in one)])


def _joined(pieces: Sequence[np.ndarray]) -> SampleSequence:
    return SampleSequence(samples=np.concatenate(pieces), edges=np.cumsum([0, *map(len, pieces)]))


def _through_webdataset(
    sizes: Sequence[Sequence[int]],
    shares: np.ndarray,
    num_samples: int,
    epoch: int,
    config: ShuffleConfig,
) -> SampleSequence:
    """What webdataset's stages give, in micro-batches; `shares` are RandomMix's probabilities."""
    import webdataset

    # RandomMix has no seed of its own.
    kept = random.getstate()
    random.seed(config.seed + epoch)
    # Several sets are gone through again and again, until a worker has had its part of the samples.
    num_streams = config.num_ranks * config.num_workers
    most = num_samples if len(sizes) == 1 else num_samples // num_streams
    streams = []
    # In step t every rank has a micro-batch of its worker t % num_workers.
    most_shards = max(map(len, sizes))  # later ranks and workers have none
    for worker in range(min(config.num_workers, most_shards)):
        for rank in range(min(config.num_ranks, most_shards)):
            sets = [_pipeline(sizes, one, rank, worker, epoch, config) for one in range(len(sizes))]
            mixed = (
                sets[0]
                if len(sets) == 1
                else webdataset.RandomMix([one.repeat() for one in sets], shares)
            )
            samples = np.fromiter(itertools.islice(mixed, most), np.int64)
            edges = range(0, len(samples), config.micro_batch_size)
            streams.append([samples[edge : edge + config.micro_batch_size] for edge in edges])
    random.setstate(kept)
    steps = itertools.zip_longest(*streams)
    return _joined([batch for step in steps for batch in step if batch is not None])


def _pipeline(
    sizes: Sequence[Sequence[int]],
    one: int,
    rank: int,
    worker: int,
    epoch: int,
    config: ShuffleConfig,
) -> Any:
    """webdataset's stages over one set's shards, as a worker of a rank has them: sample numbers."""
    import webdataset

    starts = shard_starts(sizes)
    first = sum(map(len, sizes[:one]))
    mine = range(first, first + len(sizes[one]))[rank :: config.num_ranks][
        worker :: config.num_workers
    ]

    def expand(shards: Iterator[int]) -> Iterator[int]:
        for shard in shards:
            yield from range(starts[shard], starts[shard + 1])

    return webdataset.DataPipeline(
        lambda: iter(mine),
        # It counts an epoch up each time that it is begun.
        webdataset.detshuffle(config.buffer_num_shards, seed=config.seed, epoch=epoch - 1),
        expand,
        webdataset.shuffle(
            config.buffer_num_samples, seed=f"{config.seed} {epoch} {one} {rank} {worker}"
        ),
    )


def shards_of(samples: np.ndarray, sizes: Sequence[Sequence[int]]) -> np.ndarray:
    """The shard of each sample, counted through all sets, [n]."""
    return np.searchsorted(shard_starts(sizes), samples, side="right") - 1


def sets_of(samples: np.ndarray, sizes: Sequence[Sequence[int]]) -> np.ndarray:
    """The set of each sample, [n]."""
    return np.repeat(np.arange(len(sizes)), [len(one) for one in sizes])[shards_of(samples, sizes)]


def batch_shares(sequence: SampleSequence, sizes: Sequence[Sequence[int]]) -> np.ndarray:
    """The share of each set in each micro-batch, [B, K]."""
    sets = sets_of(sequence.samples, sizes)[:, None] == np.arange(len(sizes))
    had = np.add.reduceat(sets, sequence.edges[:-1], axis=0, dtype=np.int64)
    return had / np.diff(sequence.edges)[:, None]
