"""A store of shards behind a URL, read by byte ranges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sharding.format.manifest import SampleEntry
from sharding.format.schema import ShardError
from sharding.reading.cache import Cache
from sharding.reading.local_store import LocalStore
from sharding.reading.range_reader import Range, RangeReader, ShortRead, is_outage, is_transient
from sharding.reading.sample_reader import Members, check_crc32, span_of, split_span
from sharding.reading.store import SampleRequest, Store, StoreOutage, StoreUnavailable
from sharding.user_paths import expand_user

# These read elsewhere than their URL says, run code, or leave files behind when they are killed.
# Chains ("simplecache::s3://...") are made of them.
_REFUSED = frozenset(
    (
        "async_wrapper",
        "asynclocal",
        "asyncwrapper",
        "blockcache",
        "cached",
        "dask",
        "data",
        "dir",
        "filecache",
        "generic",
        "git",
        "libarchive",
        "pyscript",
        "reference",
        "simplecache",
        "tar",
        "zip",
    )
)


def open_store(folder: str | Path, *, cache: Cache | None) -> Store:
    """The store at a path or URL; ShardError for a URL that is refused or that nothing can read.

    cache: for remote shards. Nothing is read yet.
    """
    protocol, separator, path = str(folder).partition("://")
    if separator and (protocol in _REFUSED or "::" in str(folder)):
        raise ShardError(
            f"{folder}: got a URL that reads through something else, expected the place of the "
            "shards themselves, as s3://bucket/folder"
        )
    if protocol in ("http", "https") and any(mark in path for mark in "?#"):
        raise ShardError(
            f"{folder}: got a URL with a query, behind which no file names can follow, expected "
            "that of the folder alone; where the store wants a signature, reach it by its own "
            "protocol, as s3://bucket/folder, or copy the folder here"
        )
    if not separator:
        return LocalStore(expand_user(folder))
    if protocol in ("file", "local"):
        return LocalStore(Path(path))
    return RemoteStore(str(folder), cache=cache)


class RemoteStore:
    """Shards behind a URL, read by ranges, a micro-batch at once, and kept in a bounded cache."""

    def __init__(self, url: str, *, cache: Cache | None) -> None:
        self.where = url.rstrip("/")
        self._cache = cache
        self._reader = RangeReader(self.where)

    def read_file(self, name: str) -> bytes:
        """See Store."""
        answer = self._reader.fetch_file(name)
        if isinstance(answer, Exception):
            raise _unavailable(answer)(
                f"{self.where}/{name}: {_describe_error(answer)}"
            ) from answer
        return answer

    def read_samples(self, wanted: Sequence[SampleRequest]) -> Iterator[Members | ShardError]:
        """See Store. What the cache does not have is fetched at once, before the first is given."""
        cached = [self._cached(one) for one in wanted]
        requested = [_range(one) for one, members in zip(wanted, cached) if members is None]
        answers = iter(self._reader.fetch(requested))
        for one, members in zip(wanted, cached):
            if members is not None:
                yield members
                continue
            try:
                yield self._accept(one, next(answers))
            except ShardError as error:
                yield type(error)(f"{self.where}/{one.manifest.tar}: {error}")

    def _cached(self, wanted: SampleRequest) -> Members | None:
        """What the cache has of a sample, if it is right."""
        piece = self._cache.get(self._name(wanted)) if self._cache else None
        offset, num_bytes = span_of(wanted.entry)
        if piece is None or len(piece) != num_bytes:
            return None
        try:
            return _checked(np.frombuffer(bytearray(piece), np.uint8), wanted.entry)
        except ShardError:
            return None

    def _accept(self, wanted: SampleRequest, answer: bytes | Exception) -> Members:
        if isinstance(answer, ShortRead):
            raise ShardError(str(answer)) from answer
        if isinstance(answer, Exception):
            raise _unavailable(answer)(_describe_error(answer)) from answer
        members = _checked(np.frombuffer(bytearray(answer), np.uint8), wanted.entry)
        if self._cache:
            self._cache.put(self._name(wanted), answer)
        return members

    def _name(self, wanted: SampleRequest) -> str:
        """A sample's name in the cache; with the CRC-32, so that a shard made again has others."""
        place = _range(wanted)
        return f"{self.where}/{place.name} {place.offset} {place.num_bytes} {wanted.entry.crc32}"


def _checked(span: np.ndarray, entry: SampleEntry) -> Members:
    members = split_span(span, entry)
    check_crc32(members, entry)
    return members


def _range(wanted: SampleRequest) -> Range:
    return Range(wanted.manifest.tar, *span_of(wanted.entry))


def _unavailable(answer: Exception) -> type[StoreUnavailable]:
    return StoreOutage if is_outage(answer) else StoreUnavailable


def _describe_error(error: Exception) -> str:
    """An error for people: some of those that file systems raise have no text."""
    text = str(error)
    if text.startswith("got "):
        return text
    return f"got {type(error).__name__} {text}".rstrip() + _advice(error)


def _advice(error: Exception) -> str:
    """What to do where the store answers, but not with the file, or does not answer."""
    if isinstance(error, PermissionError) or getattr(error, "status", None) in (401, 403):
        return "; the store refuses: give the credentials that it asks for, or open it"
    if is_transient(error):
        return "; the store does not answer as it should: check that it is up and reached from here"
    return ""
