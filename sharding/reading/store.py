"""What a store of shards is: a folder, or something like one, that hands out whole small files
(catalog, manifests) and samples, checked by their CRC-32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from sharding.format.manifest import Manifest, SampleEntry
from sharding.format.schema import ShardError
from sharding.reading.sample_reader import Members


class StoreUnavailable(ShardError):
    """A store does not answer, or has no such file; nothing is known of the shard's bytes."""


class StoreOutage(StoreUnavailable):
    """A store did not answer for `range_reader.RETRY_SECONDS`, and may again: no fault of a
    sample."""


class SampleRequest(NamedTuple):
    """A sample to read: the manifest of its shard, and its entry in there."""

    manifest: Manifest
    entry: SampleEntry


class Store(Protocol):
    """A folder of shards, which go by the names of its catalog. `where`: its path or URL."""

    where: str

    def read_file(self, name: str) -> bytes:
        """All of a small file; ShardError, naming it, if it is missing or cannot be read."""

    def read_samples(self, wanted: Sequence[SampleRequest]) -> Iterator[Members | ShardError]:
        """Each wanted sample's members, checked, or what is wrong with it. May share one array."""
