"""Status of a rank's loader workers in shared memory, and a watchdog that reports it when data
stall.

`sharding.reading.stream` writes "open" and "read", the code that decodes and collates in the
workers writes stages of its own, and the training loop watches:

    board = StatusBoard()
    stream = ShardStream(sources, board=board, ...)
    with StallWatch(board, after_seconds=60, log=print) as watch:
        for batch in watch.watched(loader):
            ...

    no data for 60 s: worker 3 has been in read of train-000017.tar (key 0001) for 58 s; position
    8812
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import TypeVar

from torch.utils.data import get_worker_info

from boxless.errors import BoxlessError
from sharding.reading.anonymous_file import AnonymousFile

T = TypeVar("T")
_IDLE = "idle"
_NUM_ROWS = 257
_ROW_BYTES = 512
# Position; then seconds (of the machine's monotonic clock, the same in all processes), stage, shard
# and key.
_POSITION = struct.Struct("<q")
_ACTIVITY = struct.Struct("<d16s256s100s")


@dataclass(frozen=True)
class Activity:
    """What one worker does: its number (None: the rank itself, without workers), the stage, the
    shard and key it is about ("" if none), the position, and for how long."""

    worker: int | None
    stage: str
    shard: str
    key: str
    position: int
    seconds: float

    def __str__(self) -> str:
        who = "the rank itself" if self.worker is None else f"worker {self.worker}"
        shard = f" of {self.shard}" if self.shard else ""
        key = f" (key {self.key})" if self.key else ""
        doing = f"{who} has been in {self.stage}{shard}{key} for {self.seconds:.0f} s"
        return f"{doing}; position {self.position}"


class StatusBoard:
    """One line a worker of this rank, in memory that forked and spawned workers share.

    Writing costs some microseconds and never blocks. Workers beyond 256 share lines.
    A stream begins, writes its stages and rests; code that continues with the samples in the worker
    may write stages of its own and must rest after them.
    """

    def __init__(self) -> None:
        self._table = AnonymousFile(_NUM_ROWS * _ROW_BYTES, on_disk=False)

    def begin(self, position: int) -> None:
        """This worker turns to a position."""
        _POSITION.pack_into(self._table.memory, _my_row(), position)
        self.set_stage("open")

    def set_stage(self, stage: str, shard: str = "", key: str = "") -> None:
        """This worker is now in `stage`, with a shard and key if it is about one."""
        _ACTIVITY.pack_into(
            self._table.memory,
            _my_row() + _POSITION.size,
            time.monotonic(),
            stage.encode(),
            shard.encode(),
            key.encode(),
        )

    def set_idle(self) -> None:
        """This worker has handed its samples over and waits for the next position."""
        self.set_stage(_IDLE)

    def activities(self) -> list[Activity]:
        """What every worker that has ever written does now, the one that is longest at it first."""
        now = time.monotonic()
        found = []
        for number in range(_NUM_ROWS):
            at = number * _ROW_BYTES
            (position,) = _POSITION.unpack_from(self._table.memory, at)
            since, *texts = _ACTIVITY.unpack_from(self._table.memory, at + _POSITION.size)
            if since:
                stage, shard, key = (_text(field) for field in texts)
                worker = number - 1 if number else None
                found.append(Activity(worker, stage, shard, key, position, now - since))
        return sorted(found, key=lambda activity: -activity.seconds)


def _my_row() -> int:
    """Where this process writes: line 0 for the rank itself, then its DataLoader's workers."""
    worker = get_worker_info()
    return 0 if worker is None else (1 + worker.id % (_NUM_ROWS - 1)) * _ROW_BYTES


def _text(field: bytes) -> str:
    return field.rstrip(b"\0").decode("utf-8", "replace")


class StallWatch:
    """Says what the workers do when a rank has waited for data for long.

    board: that of the stream. after_seconds: of one wait, then twice that, four times, and so on.
    log: gets the text, in a thread of the watch. The thread lives inside the `with` block.
    """

    def __init__(
        self, board: StatusBoard, *, after_seconds: float, log: Callable[[str], object]
    ) -> None:
        if after_seconds <= 0:
            raise BoxlessError(f"after_seconds: got {after_seconds}, expected more than 0")
        self._board, self._after_seconds, self._log = board, after_seconds, log
        self._waiting_since: float | None = None
        self._next_seconds = after_seconds
        self._seen_since: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stall watch", daemon=True)

    def __enter__(self) -> StallWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def watched(self, batches: Iterable[T]) -> Generator[T, None, None]:
        """The same batches, each wait for one under watch."""
        source = iter(batches)
        while True:
            self._waiting_since = time.monotonic()
            try:
                batch = next(source)
            except StopIteration:
                return
            finally:
                self._waiting_since = None
            yield batch

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._after_seconds / 4)):
            self._check(time.monotonic())

    def _check(self, now: float) -> None:
        """Log the wait that is under way at `now` if it is time for that."""
        since = self._waiting_since
        if since != self._seen_since:
            self._next_seconds, self._seen_since = self._after_seconds, since
        if since is not None and now - since >= self._next_seconds:
            self._log(self._text(now - since))
            self._next_seconds *= 2

    def _text(self, waited_seconds: float) -> str:
        busy = [activity for activity in self._board.activities() if activity.stage != _IDLE]
        reported = "; ".join(map(str, busy)) or "no worker is busy"
        return f"no data for {waited_seconds:.0f} s: {reported}"
