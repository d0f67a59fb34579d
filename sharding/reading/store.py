"""Where shards lie: a folder of a file system, or a URL that fsspec reads by ranges.

A store hands out whole small files (catalog, manifests) and samples, checked by their CRC-32. Far
ones are fetched together, a whole micro-batch at once, and kept in a bounded cache
(sharding.reading.cache). What fails on the way is requested again a few times, for a bounded time;
what is still wrong then is a ShardError.
"""

from __future__ import annotations

import asyncio
import functools
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import fsspec
import numpy as np
from fsspec.asyn import sync

from boxless.errors import BoxlessError
from sharding.format.manifest import Manifest, SampleEntry
from sharding.format.schema import ShardError
from sharding.reading.cache import Cache
from sharding.reading.sample_reader import (
    Members,
    OpenTar,
    check_crc32,
    span_of,
    split_off_picture,
    split_span,
)

# File descriptors a process holds; carried samples reach back beyond the current window.
NUM_TARS_OPEN = 64
# Attempts at a remote read, timeouts of each and of all, and the first pause between attempts.
NUM_ATTEMPTS = 5
ATTEMPT_SECONDS = 60.0
RETRY_SECONDS = 180.0
PAUSE_SECONDS = 0.5
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
# What may follow a URL: nothing that a server or fsspec takes for more than a name.
_NAME = re.compile(r"(?!\.)[A-Za-z0-9_.,=+@-]+")
_PERMANENT_ERRORS = (
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    ValueError,
)


class StoreUnavailable(ShardError):
    """A store does not answer, or has no such file; nothing is known of the shard's bytes."""


class StoreOutage(StoreUnavailable):
    """A store did not answer for `RETRY_SECONDS`, and may again: no fault of a sample."""


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
    if not separator:
        return LocalStore(Path(folder))
    if protocol in ("file", "local"):
        return LocalStore(Path(path))
    return RemoteStore(str(folder), cache=cache)


class LocalStore:
    """Shards in a folder, read by pread."""

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        self._folder = folder
        self._make_cache()

    def read_file(self, name: str) -> bytes:
        """See Store."""
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            raise ShardError(f"{self.where}/{name}: got {error.strerror}") from error

    def read_samples(self, wanted: Sequence[SampleRequest]) -> Iterator[Members | ShardError]:
        """See Store. One after the other, as they are taken; all but the pictures into one array.

        One array, because a process that asks for and frees much memory in small pieces spends more
        time on getting it from the kernel, page by page, than on reading.
        """
        parted = [split_off_picture(entry) for _, entry in wanted]
        spans = [span_of(parts[2] if parts else entry) for parts, (_, entry) in zip(parted, wanted)]
        tars: dict[str, OpenTar | ShardError] = {}
        for manifest, _ in wanted:
            if manifest.tar not in tars:
                tars[manifest.tar] = self._opened(manifest)
        array = np.empty(
            sum(
                num_bytes
                for (manifest, _), (_, num_bytes) in zip(wanted, spans)
                if isinstance(tars[manifest.tar], OpenTar)
            ),
            np.uint8,
        )
        for (manifest, entry), parts, (offset, num_bytes) in zip(wanted, parted, spans):
            tar = tars[manifest.tar]
            if isinstance(tar, ShardError):
                yield tar
                continue
            span, array = array[:num_bytes], array[num_bytes:]
            try:
                tar.read_into(span, offset)
                members = split_span(span, parts[2] if parts else entry)
                if parts:
                    members = {parts[0]: tar.read(*parts[1]), **members}
                check_crc32(members, entry)
                yield members
            except ShardError as error:
                yield error

    def _opened(self, manifest: Manifest) -> OpenTar | ShardError:
        """The tar, of the size that its manifest says."""
        try:
            tar = self._tar(manifest.tar)
            tar.check_size(manifest)
            return tar
        except ShardError as error:
            return error

    def _open(self, name: str) -> OpenTar:
        return OpenTar(self._folder / name)

    def _make_cache(self) -> None:
        self._tar = functools.lru_cache(maxsize=NUM_TARS_OPEN)(self._open)

    def __getstate__(self) -> dict[str, Any]:
        """Without open files: the process that unpickles opens its own."""
        return {"where": self.where, "_folder": self._folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_cache()


def _checked(span: np.ndarray, entry: SampleEntry) -> Members:
    members = split_span(span, entry)
    check_crc32(members, entry)
    return members


class _Range(NamedTuple):
    """Bytes of a file: `num_bytes` from `offset` on, or all of it where that is None."""

    name: str
    offset: int = 0
    num_bytes: int | None = None


NO_RANGES = "the server knows no ranges"
"""In the cause of every sample of such a server: its shards may be sound."""


class RangesUnsupported(BoxlessError):
    """A server answered with more bytes than requested."""


class ShortRead(OSError):
    """A server answered with fewer bytes than requested."""


class RemoteStore:
    """Shards behind a URL, read by ranges. Each process makes connections of its own.

    Stalled and slow answers are cut off by time where the file system is one of fsspec's
    asynchronous ones (http, s3, gs, abfs and most others).
    """

    def __init__(self, url: str, *, cache: Cache | None) -> None:
        self.where = url.rstrip("/")
        self._cache = cache
        self._process: int | None = None
        self._serves_ranges = False
        self._connect()

    def read_file(self, name: str) -> bytes:
        """See Store."""
        (answer,) = self._fetch_with_retries([_Range(name)])
        if isinstance(answer, Exception):
            raise _unavailable(answer)(f"{self.where}/{name}: {describe_error(answer)}") from answer
        return answer

    def read_samples(self, wanted: Sequence[SampleRequest]) -> Iterator[Members | ShardError]:
        """See Store. What the cache does not have is fetched at once, before the first is given."""
        kept = [self._kept(one) for one in wanted]
        asked = [_range(one) for one, members in zip(wanted, kept) if members is None]
        answers = iter(self._fetch_ranges(asked))
        for one, members in zip(wanted, kept):
            if members is not None:
                yield members
                continue
            try:
                yield self._accept(one, next(answers))
            except ShardError as error:
                yield type(error)(f"{self.where}/{one.manifest.tar}: {error}")

    def _kept(self, wanted: SampleRequest) -> Members | None:
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
            raise _unavailable(answer)(describe_error(answer)) from answer
        members = _checked(np.frombuffer(bytearray(answer), np.uint8), wanted.entry)
        if self._cache:
            self._cache.put(self._name(wanted), answer)
        return members

    def _name(self, wanted: SampleRequest) -> str:
        """A sample's name in the cache; with the CRC-32, so that a shard made anew has others."""
        asked = _range(wanted)
        return f"{self.where}/{asked.name} {asked.offset} {asked.num_bytes} {wanted.entry.crc32}"

    def _fetch_ranges(self, ranges: Sequence[_Range]) -> list[bytes | Exception]:
        """_fetch_with_retries, the very first alone: a server that does not know ranges answers
        with all of a shard, and would do so for each of them."""
        if self._serves_ranges or not ranges:
            return self._fetch_with_retries(ranges)
        (first,) = self._fetch_with_retries(ranges[:1])
        if isinstance(first, RangesUnsupported):
            return [first] * len(ranges)
        self._serves_ranges = isinstance(first, bytes)
        return [first, *self._fetch_with_retries(ranges[1:])]

    def _fetch_with_retries(self, ranges: Sequence[_Range]) -> list[bytes | Exception]:
        """The bytes of each range, of the right number, or why they cannot be had."""
        answers: dict[int, bytes | Exception] = {}
        places = list(range(len(ranges)))
        for seconds in _attempts():
            self._connect()
            answers |= zip(places, self._fetch_once([ranges[place] for place in places], seconds))
            places = [place for place in places if _is_transient(answers[place])]
            if not places:
                break
        return [answers[place] for place in range(len(ranges))]

    def _fetch_once(self, ranges: Sequence[_Range], seconds: float) -> list[bytes | Exception]:
        """Asks once, for all at the same time."""
        if self._filesystem.async_impl:
            calls = [self._cat(one, seconds) for one in ranges]
            answers = sync(self._filesystem.loop, _gather, calls)
        else:
            answers = [self._cat_blocking(one) for one in ranges]
        return [_of_right_length(one, answer) for one, answer in zip(ranges, answers)]

    async def _cat(self, one: _Range, seconds: float) -> bytes:
        return await asyncio.wait_for(self._filesystem._cat_file(*self._place(one)), seconds)

    def _cat_blocking(self, one: _Range) -> bytes | Exception:
        try:
            return self._filesystem.cat_file(*self._place(one))
        # File systems raise what they like; it comes back as what is wrong with this range.
        except Exception as error:
            return error

    def _place(self, one: _Range) -> tuple[str, int | None, int | None]:
        """Path, start and end as fsspec takes them."""
        if not _NAME.fullmatch(one.name):
            raise BoxlessError(f"name {one.name!r}, expected letters, digits and _ . , = + @ -")
        path = f"{self._root}/{one.name}"
        return (
            (path, None, None)
            if one.num_bytes is None
            else (path, one.offset, one.offset + one.num_bytes)
        )

    def _connect(self) -> None:
        """Connections do not outlive a fork: the first call in each process makes them."""
        if self._process == os.getpid():
            return
        try:
            self._filesystem, root = fsspec.core.url_to_fs(self.where)
        except (ImportError, ValueError) as error:
            raise ShardError(
                f"{self.where}: got {error}, expected a URL that fsspec can read; install what it "
                "names, or give another"
            ) from error
        self._root, self._process = root.rstrip("/"), os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """Without connections: the process that unpickles makes its own."""
        return {
            "where": self.where,
            "_cache": self._cache,
            "_process": None,
            "_serves_ranges": self._serves_ranges,
        }


def _range(wanted: SampleRequest) -> _Range:
    return _Range(wanted.manifest.tar, *span_of(wanted.entry))


async def _gather(calls: Sequence[Any]) -> list[Any]:
    return await asyncio.gather(*calls, return_exceptions=True)


def _of_right_length(one: _Range, answer: bytes | Exception) -> bytes | Exception:
    if isinstance(answer, Exception) or one.num_bytes in (None, len(answer)):
        return answer
    got = f"got {len(answer)} bytes, expected {one.num_bytes} from byte {one.offset} on: "
    if len(answer) > one.num_bytes:
        return RangesUnsupported(
            f"{got}{NO_RANGES}; serve the shards by one that does, as nginx or an object store "
            "(python -m http.server does not), or copy them to a folder"
        )
    return ShortRead(f"{got}the shard is cut short, or the answer was")


def _is_transient(answer: bytes | Exception) -> bool:
    """Whether another attempt may help: not with what is missing, forbidden or misspelled."""
    if not isinstance(answer, Exception) or isinstance(answer, _PERMANENT_ERRORS):
        return False
    status = getattr(answer, "status", None)
    return status in (408, 429) or not (isinstance(status, int) and 400 <= status < 500)


def _unavailable(answer: Exception) -> type[StoreUnavailable]:
    return StoreOutage if _is_transient(answer) else StoreUnavailable


def _attempts() -> Iterator[float]:
    """The seconds that each attempt may take; pauses, ever longer, before all but the first."""
    end = time.monotonic() + RETRY_SECONDS
    for number in range(NUM_ATTEMPTS):
        left = end - time.monotonic()
        if number:
            pause = PAUSE_SECONDS * 2 ** (number - 1)
            if pause >= left:
                return
            time.sleep(pause)
            left -= pause
        yield min(ATTEMPT_SECONDS, left)


def describe_error(error: Exception) -> str:
    """An error for people: some of those that file systems raise have no text."""
    text = str(error)
    return text if text.startswith("got ") else f"got {type(error).__name__} {text}".rstrip()
