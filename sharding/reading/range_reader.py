"""Reads byte ranges of files behind a URL, by fsspec, with timeouts and retries."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import fsspec
from fsspec.asyn import sync

from boxless.errors import BoxlessError
from sharding.format.likely_cause import is_web_page
from sharding.format.schema import ShardError

# Attempts at a remote read, the timeout of each, for how long new ones begin, and the first and the
# longest pause.
NUM_ATTEMPTS = 5
ATTEMPT_SECONDS = 60.0
RETRY_SECONDS = 180.0
PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 15.0
# What may follow a URL: nothing that a server or fsspec takes for more than a name.
_NAME = re.compile(r"(?!\.)[A-Za-z0-9_.,=+@-]+")
_NOT_SATISFIABLE = 416  # of HTTP: the file ends before the range begins
_PERMANENT_ERRORS = (
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    ValueError,
    TypeError,
    AttributeError,
    NotImplementedError,
)


class Range(NamedTuple):
    """Bytes of a file: `num_bytes` from `offset` on, or all of it where that is None."""

    name: str
    offset: int = 0
    num_bytes: int | None = None


NO_RANGES = "the server does not support ranges"
"""In the cause of every sample of such a server: its shards may be intact."""


class RangesUnsupported(BoxlessError):
    """A server answered with more bytes than requested."""


class ShortRead(OSError):
    """A server answered with fewer bytes than requested."""


class PastTheEnd(ShortRead):
    """The file ends before the range begins, the server says."""


class WebPage(ShortRead):
    """A server answered with a page for people in place of a file."""


class RangeReader:
    """Reads ranges of the files below a URL by fsspec, many at once.

    Each process makes connections of its own.

    What fails on the way is requested again, with a note: NUM_ATTEMPTS times, or for RETRY_SECONDS
    where a store that has answered before does not. A pause that the store asks for (Retry-After)
    is kept up to ATTEMPT_SECONDS. Stalled and slow answers are cut off by time where the file
    system is one of fsspec's asynchronous ones (http, s3, gs, abfs and most others).
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._process: int | None = None
        self._serves_ranges = self._has_answered = False
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
        end = time.monotonic() + RETRY_SECONDS
        for number in itertools.count(1):
            self._connect()
            answers |= zip(places, self._fetch_once([ranges[place] for place in places]))
            if any(isinstance(answers[place], bytes) for place in places):
                self._has_answered = True
            places = [place for place in places if is_transient(answers[place])]
            failed = [answers[place] for place in places]
            is_last = number >= NUM_ATTEMPTS and not (
                self._has_answered and any(map(is_outage, failed))
            )
            pause = max([_pause(number), *map(_requested_pause, failed)])
            if not places or is_last or pause >= end - time.monotonic():
                break
            self._note(ranges[places[0]], answers[places[0]], pause)
            time.sleep(pause)
        return [answers[place] for place in range(len(ranges))]

    def _note(self, one: Range, error: bytes | Exception, pause: float) -> None:
        """Says why nothing seems to happen; printed by the process that reads."""
        got = str(error) or type(error).__name__
        print(
            f"WARNING: {self._url}/{one.name}: got {got.removeprefix('got ')}; trying again in "
            f"{pause:.1f} s",
            flush=True,
        )

    def _fetch_once(self, ranges: Sequence[Range]) -> list[bytes | Exception]:
        """One request of all ranges, at the same time."""
        if self._filesystem.async_impl:
            calls = [self._cat(one) for one in ranges]
            answers = sync(self._filesystem.loop, _gather, calls)
        else:
            answers = [self._cat_blocking(one) for one in ranges]
        return [_of_right_length(one, answer) for one, answer in zip(ranges, answers)]

    async def _cat(self, one: Range) -> bytes:
        request = self._filesystem._cat_file(*self._place(one))
        return await asyncio.wait_for(request, ATTEMPT_SECONDS)

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
        return {**vars(self), "_process": None, "_filesystem": None}


async def _gather(calls: Sequence[Any]) -> list[Any]:
    return await asyncio.gather(*calls, return_exceptions=True)


def _of_right_length(one: Range, answer: bytes | Exception) -> bytes | Exception:
    if getattr(answer, "status", None) == _NOT_SATISFIABLE:
        return PastTheEnd(f"got no bytes from byte {one.offset} on: the shard is cut short")
    if isinstance(answer, Exception) or one.num_bytes == len(answer):
        return answer
    # No file that is read whole (JSON, arrays) begins so, and a shard's bytes have another number.
    if is_web_page(answer):
        return WebPage(
            f"got a web page of {len(answer)} bytes, as servers send in place of a file that they "
            "do not give: a page to log in, or of a proxy; look at it in a browser, and give the "
            "store's own address"
        )
    if one.num_bytes is None:
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
    if not isinstance(answer, Exception) or isinstance(answer, (*_PERMANENT_ERRORS, PastTheEnd)):
        return False
    status = getattr(answer, "status", None)
    return status in (408, 429) or not (isinstance(status, int) and 400 <= status < 500)


def is_outage(answer: bytes | Exception) -> bool:
    """Whether the store itself does not answer as it should. Too few bytes, or a page in place of a
    file, may be all that it ever gives."""
    return is_transient(answer) and not isinstance(answer, ShortRead)


def _pause(number: int) -> float:
    """Seconds after attempt `number`, from 1; ever longer."""
    return min(PAUSE_SECONDS * 2.0 ** (number - 1), LONGEST_PAUSE_SECONDS)


def _requested_pause(answer: bytes | Exception) -> float:
    """Seconds that the store asks to be left alone, bounded; 0 where it does not say."""
    headers = getattr(answer, "headers", None)
    text = headers.get("Retry-After", "") if isinstance(headers, Mapping) else ""
    return min(float(text), ATTEMPT_SECONDS) if text.isdecimal() else 0.0
