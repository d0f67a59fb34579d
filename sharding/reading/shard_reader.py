"""Reads samples by number of shard and sample from any mix of stores, or reports their faults.

Manifests are read when a sample of their shard is first asked for, and must be those that the
catalog saw.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sharding.format.catalog import ShardEntry, check_manifest
from sharding.format.manifest import Manifest, SampleEntry, manifest_path, parse_manifest
from sharding.format.schema import ShardError
from sharding.reading.sample_reader import Members
from sharding.reading.store import SampleRequest, Store, StoreOutage, StoreUnavailable
from sharding.reading.watchdog import StatusBoard
from sharding.tools.verify import Fault

T = TypeVar("T")


class RawSample(NamedTuple):
    """A sample as it was read: path or URL of its shard, entry in the manifest, members."""

    shard: str
    entry: SampleEntry
    members: Members


_UNREAD = Fault("", None, "not read")


class ShardReader:
    """The shards [S] of one or more stores, by number.

    shards: the store and the catalog's entry of each. num_manifests: how many are kept in memory,
    about 1 kB a sample. board: where it says what it does. waits_for_store: ask a store that does
    not answer again and again, with a warning, instead of a fault of the sample.
    """

    def __init__(
        self,
        shards: Sequence[tuple[Store, ShardEntry]],
        *,
        num_manifests: int,
        board: StatusBoard,
        waits_for_store: bool = False,
    ) -> None:
        self._shards, self._num_manifests, self._board = shards, num_manifests, board
        self._waits_for_store = waits_for_store
        self._make_cache()

    def __len__(self) -> int:
        return len(self._shards)

    def where(self, shard: int) -> str:
        """Path or URL of a shard."""
        store, entry = self._shards[shard]
        return f"{store.where}/{entry.tar}"

    def manifest(self, shard: int) -> Manifest:
        """The manifest that the catalog saw; ShardError, naming it, if it is another or missing."""
        return self._manifest(shard)

    def read(
        self, samples: Sequence[tuple[int, int]], make: Callable[[RawSample], T]
    ) -> list[T | Fault]:
        """What make(raw) gives for the samples at (shard, sample), in the order asked for.

        A Fault where a sample cannot be read, or make raises ShardError.
        """
        results: list[T | Fault] = [_UNREAD] * len(samples)
        found: dict[Store, list[tuple[int, SampleRequest]]] = defaultdict(list)
        # In the order in which they lie, which disks like.
        for place in sorted(range(len(samples)), key=samples.__getitem__):
            shard, sample = samples[place]
            try:
                manifest = self._manifest(shard)
                wanted = SampleRequest(manifest, manifest.samples[sample])
            except ShardError as error:
                results[place] = self._fault(shard, None, error)
            else:
                found[self._shards[shard][0]].append((place, wanted))
        for store, listed in found.items():
            read = self._read_samples(store, [wanted for _, wanted in listed])
            for place, (manifest, entry) in listed:
                self._board.set_stage("read", manifest.tar, entry.key)
                results[place] = self._made(samples[place][0], entry, next(read), make)
        return results

    def _read_samples(
        self, store: Store, wanted: Sequence[SampleRequest]
    ) -> Iterator[Members | ShardError]:
        """Reads from the store, retried while it is unavailable if waiting is allowed."""
        for one, members in zip(wanted, store.read_samples(wanted)):
            while self._waits_for_store and isinstance(members, StoreOutage):
                self._warn(members)
                (members,) = store.read_samples([one])
            yield members

    def _read_file(self, store: Store, name: str) -> bytes:
        while True:
            try:
                return store.read_file(name)
            except StoreOutage as error:
                if not self._waits_for_store:
                    raise
                self._warn(error)

    def _warn(self, error: StoreOutage) -> None:
        """Printed by the process that reads; the status board names the shard."""
        print(f"WARNING: the store does not answer, retrying: {error}", flush=True)

    def _made(
        self,
        shard: int,
        entry: SampleEntry,
        members: Members | ShardError,
        make: Callable[[RawSample], T],
    ) -> T | Fault:
        if isinstance(members, ShardError):
            return self._fault(shard, entry.key, self._explained(shard, members))
        try:
            return make(RawSample(self.where(shard), entry, members))
        except ShardError as error:
            return self._fault(shard, entry.key, error)

    def _fault(self, shard: int, key: str | None, error: ShardError) -> Fault:
        where = self.where(shard)
        return Fault(where, key, str(error).removeprefix(f"{where}: "))

    def _explained(self, shard: int, error: ShardError) -> ShardError:
        """What is wrong with a shard may be that it is a new one: then its manifest is new too."""
        if isinstance(error, StoreUnavailable):
            return error
        try:
            self._load(shard)
        except ShardError as cause:
            return ShardError(f"{error}; {cause}")
        return error

    def _load(self, shard: int) -> Manifest:
        store, entry = self._shards[shard]
        name = manifest_path(Path(entry.tar)).name
        self._board.set_stage("open", entry.tar)
        try:
            data = self._read_file(store, name)
        except ShardError as error:
            raise ShardError(
                f"{error}, expected the shard's manifest; restore it or run the stage that "
                "writes it again"
            ) from error
        check_manifest(data, entry, f"{store.where}/{name}")
        manifest = parse_manifest(data, Path(entry.tar), lazily=True)
        if manifest.num_ok != entry.num_ok:
            raise ShardError(
                f"{store.where}/{name}: got {manifest.num_ok} samples, expected {entry.num_ok} of "
                "the catalog; run the stage that writes the folder again"
            )
        return manifest

    def _make_cache(self) -> None:
        self._manifest = functools.lru_cache(maxsize=self._num_manifests)(self._load)

    def __getstate__(self) -> dict[str, Any]:
        """Without manifests: the process that unpickles reads its own."""
        return {name: value for name, value in vars(self).items() if name != "_manifest"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_cache()


def check_result(result: T | Fault) -> T:
    """What was read, if it was; ShardError naming shard, key and cause if it is a Fault."""
    if isinstance(result, Fault):
        key = f"sample {result.key}: " if result.key is not None else ""
        raise ShardError(f"{result.tar}: {key}{result.cause}")
    return result
