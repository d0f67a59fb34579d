"""Reads byte ranges of files behind a URL, by fsspec, with timeouts and retries."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import fsspec
from fsspec.asyn import sync

from boxless.errors import BoxlessError
from sharding.format.schema import ShardError

# Attempts at a remote read, timeouts of each and of all, and the first pause between attempts.
NUM_ATTEMPTS = 5
ATTEMPT_SECONDS = 60.0
RETRY_SECONDS = 180.0
PAUSE_SECONDS = 0.5
# What may follow a URL: nothing that a server or fsspec takes for more than a name.
_NAME = re.compile(r"(?!\.)[A-Za-z0-9_.,=+@-]+")
_PERMANENT_ERRORS = (
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    ValueError,
)


class Range(NamedTuple):
    """Bytes of a file: `num_bytes` from `offset` on, or all of it where that is None."""

    name: str
    offset: int = 0
    num_bytes: int | None = None


NO_RANGES = "the server does not support ranges"
"""In the cause of every sample of such a server: its shards may be sound."""


class RangesUnsupported(BoxlessError):
    """A server answered with more bytes than requested."""


class ShortRead(OSError):
    """A server answered with fewer bytes than requested."""


class RangeReader:
    """Reads ranges of the files below a URL by fsspec, many at once.

    Each process makes connections of its own.

    What fails on the way is requested again a few times, for a bounded time. Stalled and slow
    answers are cut off by time where the file system is one of fsspec's asynchronous ones (http,
    s3, gs, abfs and most others).
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._process: int | None = None
        self._serves_ranges = False
        self._connect()

    def fetch_file(self, name: str) -> bytes | Exception:
        """All of a small file, or why it cannot be read."""
        (answer,) = self._fetch_with_retries([Range(name)])
        return answer

    def fetch(self, ranges: Sequence[Range]) -> list[bytes | Exception]:
        """The bytes of each range, or why they cannot be read.

        The first request goes alone: a server that does not know ranges answers with all of a
        shard, and would do so for each of them.
        """
        if self._serves_ranges or not ranges:
            return self._fetch_with_retries(ranges)
        (first,) = self._fetch_with_retries(ranges[:1])
        if isinstance(first, RangesUnsupported):
            return [first] * len(ranges)
        self._serves_ranges = isinstance(first, bytes)
        return [first, *self._fetch_with_retries(ranges[1:])]

    def _fetch_with_retries(self, ranges: Sequence[Range]) -> list[bytes | Exception]:
        """The bytes of each range, of the right number, or why they cannot be read."""
        answers: dict[int, bytes | Exception] = {}
        places = list(range(len(ranges)))
        for seconds in _attempts():
            self._connect()
            answers |= zip(places, self._fetch_once([ranges[place] for place in places], seconds))
            places = [place for place in places if is_transient(answers[place])]
            if not places:
                break
        return [answers[place] for place in range(len(ranges))]

    def _fetch_once(self, ranges: Sequence[Range], seconds: float) -> list[bytes | Exception]:
        """One request of all ranges, at the same time."""
        if self._filesystem.async_impl:
            calls = [self._cat(one, seconds) for one in ranges]
            answers = sync(self._filesystem.loop, _gather, calls)
        else:
            answers = [self._cat_blocking(one) for one in ranges]
        return [_of_right_length(one, answer) for one, answer in zip(ranges, answers)]

    async def _cat(self, one: Range, seconds: float) -> bytes:
        return await asyncio.wait_for(self._filesystem._cat_file(*self._place(one)), seconds)

    def _cat_blocking(self, one: Range) -> bytes | Exception:
        try:
            return self._filesystem.cat_file(*self._place(one))
        # File systems raise what they like; it comes back as what is wrong with this range.
        except Exception as error:
            return error

    def _place(self, one: Range) -> tuple[str, int | None, int | None]:
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
            self._filesystem, root = fsspec.core.url_to_fs(self._url)
        except (ImportError, ValueError) as error:
            raise ShardError(
                f"{self._url}: got {error}, expected a URL that fsspec can read; install what it "
                "names, or give another"
            ) from error
        self._root, self._process = root.rstrip("/"), os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """Without connections: the process that unpickles makes its own."""
        return {"_url": self._url, "_process": None, "_serves_ranges": self._serves_ranges}


async def _gather(calls: Sequence[Any]) -> list[Any]:
    return await asyncio.gather(*calls, return_exceptions=True)


def _of_right_length(one: Range, answer: bytes | Exception) -> bytes | Exception:
    if isinstance(answer, Exception) or one.num_bytes in (None, len(answer)):
        return answer
    got = f"got {len(answer)} bytes, expected {one.num_bytes} from byte {one.offset} on: "
    if len(answer) > one.num_bytes:
        return RangesUnsupported(
            f"{got}{NO_RANGES}; serve the shards by one that does, as nginx or an object store "
            "(python -m http.server does not), or copy them to a folder"
        )
    return ShortRead(f"{got}the shard is cut short, or the answer was")


def is_transient(answer: bytes | Exception) -> bool:
    """Whether another attempt may help: not with what is missing, forbidden or misspelled."""
    if not isinstance(answer, Exception) or isinstance(answer, _PERMANENT_ERRORS):
        return False
    status = getattr(answer, "status", None)
    return status in (408, 429) or not (isinstance(status, int) and 400 <= status < 500)


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
