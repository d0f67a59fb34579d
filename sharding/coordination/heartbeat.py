"""A worker's file: its identity, its current shard, and a heartbeat counter.

The file is rewritten in place every few seconds with an increasing counter. An observer remembers
the file's content and, by its own monotonic clock, since when it has not changed; after a lease
without a change the worker is considered dead (LivenessMonitor). No file times and no clock of
another machine take part, so clocks may differ by any amount. A worker whose own work is stalled
for `stall_seconds` stops its counter itself, so that a hang is treated as a death.

Besides, the worker holds a lock (flock) on its file: on the same machine a killed worker is known
by its free lock at once. On another machine a free lock says nothing (Lustre and others keep locks
to one machine), so there only the counter counts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sharding.writing.atomic import naming

LEASE_SECONDS = 60.0
STALL_SECONDS = 900.0
PREFIX = "worker-"
BEAT_SECONDS = 5.0
"""At most, from one count to the next."""
_RATE_SECONDS = 120.0
_RECORD_BYTES = 1024  # always the same, so that a rewrite in place leaves nothing of the last one
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a worker writes about itself.

    machine: host name and boot id. token: random, its own. settings: digest of what shapes the
    shards it writes. lease_seconds: after so long without a new counter it is dead. counter: of
    heartbeats. tar: the shard being written, None between two. tar_seconds: for how long. num_done
    of num_inputs: how far it is. is_stalled: whether it stopped its counter because nothing moved.
    is_starting: whether it has not yet looked for a shard. rate: inputs a second over the last two
    minutes.
    """

    host: str
    pid: int
    machine: str
    token: str
    settings: str
    lease_seconds: float
    counter: int = 0
    tar: str | None = None
    tar_seconds: float = 0.0
    num_done: int = 0
    num_inputs: int = 0
    is_stalled: bool = False
    is_starting: bool = False
    rate: float = 0.0

    @property
    def name(self) -> str:
        """HOST:PID, for people."""
        return f"{self.host}:{self.pid}"


@dataclass(frozen=True)
class WorkerState:
    """A worker's file as it was read.

    record: None if unreadable. content: the bytes, which change with each heartbeat. has_ended:
    whether this machine knows that its process has ended. is_running: whether this machine knows
    that its process lives. changed_at: the file's time, a hint for people and nothing else, as it
    may be of any machine's clock.
    """

    record: Record | None
    content: bytes
    has_ended: bool
    is_running: bool
    changed_at: float

    @property
    def token(self) -> str:
        """The worker's own random text; empty if the file is unreadable."""
        return self.record.token if self.record else ""


class LivenessMonitor:
    """Decides whether workers are alive, by changes that this process saw on its own monotonic
    clock."""

    def __init__(self) -> None:
        self._last_change: dict[str, tuple[bytes, float]] = {}
        self._moved: set[str] = set()

    def silent_seconds(self, state: WorkerState) -> float:
        """For how long the worker's counter has not changed while this process watched."""
        now = time.monotonic()
        last = self._last_change.get(state.token)
        if last is None or last[0] != state.content:
            if last is not None:
                self._moved.add(state.token)
            self._last_change[state.token] = (state.content, now)
            return 0.0
        return now - last[1]

    def is_dead(self, state: WorkerState) -> bool:
        """Whether its work is abandoned."""
        lease = state.record.lease_seconds if state.record else LEASE_SECONDS
        return state.has_ended or self.silent_seconds(state) > lease

    def shown_silent_seconds(self, state: WorkerState) -> float:
        """silent_seconds for people: before the counter was seen to move, by the file's time."""
        silent = self.silent_seconds(state)
        return silent if state.token in self._moved else max(silent, time.time() - state.changed_at)

    def has_moved(self, state: WorkerState) -> bool:
        """Whether this process saw its counter move."""
        return state.token in self._moved

    def is_known_alive(self, state: WorkerState) -> bool:
        """Whether it certainly lives: its process runs on this machine, or its counter moved."""
        return not self.is_dead(state) and (state.is_running or state.token in self._moved)


def this_machine() -> str:
    """Host name and boot id: processes with the same one share a kernel, and so its locks."""
    try:
        boot = _BOOT_ID.read_text().strip()
    except OSError:  # not Linux; then no two processes know that they share a machine
        boot = secrets.token_hex(8)
    return f"{socket.gethostname()} {boot}"


def read_worker_state(path: Path) -> WorkerState | None:
    """The worker whose file, or claim, is `path`; None if there is none.

    Opened again each time: over a network that asks the server for its present state.
    """
    try:
        with open(path, "rb") as source:
            content = source.read(_RECORD_BYTES)
            record = _parsed(content)
            is_here = record is not None and record.machine == this_machine()
            is_locked = _is_locked(source.fileno()) if is_here else None
            changed_at = os.fstat(source.fileno()).st_mtime
            return WorkerState(record, content, is_locked is False, is_locked is True, changed_at)
    except OSError:  # removed, or replaced on the server at this moment (ESTALE)
        return None


def workers_in(folder: Path) -> Iterator[WorkerState]:
    """Every worker whose file is in `folder`, dead ones too; none if there is no such folder."""
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        if name.startswith(PREFIX) and (state := read_worker_state(folder / name)) is not None:
            yield state


def _parsed(data: bytes) -> Record | None:
    try:
        return Record(**json.loads(data))
    except (ValueError, TypeError):
        return None


def _is_locked(descriptor: int) -> bool | None:
    """Whether somebody holds the file's lock; None on a file system without locks. A shared lock is
    asked for, so that two who ask do not take each other for the holder."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


class Heartbeat:
    """This worker's own file in `folder`, kept alive by a thread until `stop`.

    stall_seconds: the thread stops the counter while a shard is written and no input was counted
    for so long. Raises FileNotFoundError if the folder is not there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settings: str,
        lease_seconds: float,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        token = secrets.token_hex(8)
        self.path = folder / f"{PREFIX}{token}"
        self.record = Record(
            host=socket.gethostname(),
            pid=os.getpid(),
            machine=this_machine(),
            token=token,
            settings=settings,
            lease_seconds=lease_seconds,
            is_starting=True,
        )
        self.num_beats = 0
        self._stall_seconds = stall_seconds
        self._began = self._last_progress = time.monotonic()
        self._counts = deque([(time.monotonic(), 0)])
        self._num_inputs_done = 0
        self._changing = (
            threading.Lock()
        )  # for the record, which the heartbeat's thread changes too
        self._writing = threading.Lock()
        self._stopped = threading.Event()
        # Complete and locked before it has the name by which others find it.
        hidden = folder / f".{self.path.name}"
        self._descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        with contextlib.suppress(OSError):  # a file system without locks: then leases alone count
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            self.beat()
            os.rename(hidden, self.path)
        except OSError:
            with contextlib.suppress(OSError):
                hidden.unlink(missing_ok=True)
            os.close(self._descriptor)
            raise
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def end_start(self) -> None:
        """Note that this worker now looks for shards."""
        self._change(is_starting=False)
        self.beat()

    def begin(self, tar: str, num_inputs: int) -> None:
        """Note that this worker now writes `tar`."""
        self._began = self._last_progress = time.monotonic()
        self._change(tar=tar, num_done=0, num_inputs=num_inputs, is_stalled=False)
        self.beat()

    def advance(self) -> None:
        """Count one more input; the next heartbeat shows it."""
        self._num_inputs_done += 1
        self._last_progress = time.monotonic()
        with self._changing:
            self.record = replace(self.record, num_done=self.record.num_done + 1, is_stalled=False)

    def end(self) -> None:
        """Note that this worker is between two shards."""
        self._change(tar=None, num_done=0, num_inputs=0, is_stalled=False)
        self.beat()

    def _change(self, **fields: Any) -> None:
        with self._changing:
            self.record = replace(self.record, **fields)

    def beat(self) -> None:
        """Write the record once more, with the next counter."""
        with self._writing:
            self.num_beats += 1
            record = replace(
                self.record,
                counter=self.num_beats,
                tar_seconds=round(time.monotonic() - self._began, 1) if self.record.tar else 0.0,
                rate=round(self._rate(), 3),
            )
            data = json.dumps(asdict(record)).encode().ljust(_RECORD_BYTES)
            assert len(data) == _RECORD_BYTES, record
            with naming(self.path):
                os.pwrite(self._descriptor, data, 0)
                os.fsync(self._descriptor)  # over a network: now

    def stop(self) -> None:
        """End the heartbeat and take the file away; never raises."""
        self._stopped.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            os.close(self._descriptor)

    def _run(self) -> None:
        every = min(self.record.lease_seconds / 4, BEAT_SECONDS)
        while not self._stopped.wait(every):
            if self.record.is_stalled:
                continue
            with self._changing:
                if self._has_stalled():
                    self.record = replace(self.record, is_stalled=True)
            with contextlib.suppress(OSError):  # a full or slow disk: the next one may succeed
                self.beat()

    def _has_stalled(self) -> bool:
        still = time.monotonic() - self._last_progress
        return self.record.tar is not None and still > self._stall_seconds

    def _rate(self) -> float:
        """Inputs a second over the last minutes."""
        now = time.monotonic()
        self._counts.append((now, self._num_inputs_done))
        while len(self._counts) > 2 and now - self._counts[0][0] > _RATE_SECONDS:
            self._counts.popleft()
        since, count = self._counts[0]
        return (self._num_inputs_done - count) / max(now - since, 1e-3)
