"""Samples of a finished shard, each read when it is asked for, in any order."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sharding.format.manifest import SampleEntry, read_manifest
from sharding.format.schema import Sample
from sharding.reading.sample_reader import OpenTar, read_entry


@dataclass(frozen=True)
class ShardSamples:
    """Samples by place; keys and sizes of the manifest are known without reading one.

    entries: those of the manifest. read: gives the sample of an entry, and raises ShardError where
    it is damaged.
    """

    entries: Sequence[SampleEntry]
    read: Callable[[SampleEntry], Sample]

    @classmethod
    def of(cls, tar: Path) -> ShardSamples:
        """All samples of `tar` in their order; ShardError where the tar is not its manifest's."""
        manifest = read_manifest(tar)
        source = OpenTar(tar)
        source.check_size(manifest)
        return cls(manifest.samples, functools.partial(read_entry, source))

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Sample]:
        return map(self.read, self.entries)

    def __getitem__(self, place: int) -> Sample:
        """The sample at `place`, read and checked by its CRC-32."""
        return self.read(self.entries[place])

    def at(self, places: Sequence[int]) -> ShardSamples:
        """The samples at some places, in that order."""
        return ShardSamples([self.entries[place] for place in places], self.read)
