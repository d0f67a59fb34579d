"""Reads every sample of the sources once, in the order of the shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from sharding.reading.dataset_source import OpenSource
from sharding.reading.shard_reader import RawSample, ShardReader
from sharding.reading.watchdog import StatusBoard
from sharding.tools.verify import Fault

T = TypeVar("T")
SAMPLES_AT_ONCE = 64


def every_sample(
    opened: Sequence[OpenSource], make: Callable[[RawSample], T]
) -> Iterator[T | Fault]:
    """What `make` gives for each sample, or the fault of one that is damaged."""
    shards = ShardReader(
        [(one.store, entry) for one in opened for entry in one.entries],
        num_manifests=1,
        board=StatusBoard(),
    )
    for shard in range(len(shards)):
        num_samples = shards.manifest(shard).num_ok
        for start in range(0, num_samples, SAMPLES_AT_ONCE):
            stop = min(start + SAMPLES_AT_ONCE, num_samples)
            yield from shards.read([(shard, sample) for sample in range(start, stop)], make)
