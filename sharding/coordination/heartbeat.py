"""A worker's file: who works in a folder of shards, at what, and that it is still alive.

Reached from sharding.coordination.claims, whose workers each keep one such file, and from sharding.coordination.progress, which
reads them. The file is rewritten in place every few seconds; the time of its last change, in the
file system's own clock, is the heartbeat, so no two machines need the same time. Besides, the
worker holds a lock (flock) on it: on the same machine a killed worker is known by its free lock at
once. On another machine a free lock says nothing (Lustre and others keep locks to one machine), so
there only the lease counts: the worker is dead when its heartbeat is older than that.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

LEASE_SECONDS = 60.0
PREFIX = "worker-"
_BEAT_SECONDS = 5.0
_RATE_SECONDS = 120.0
_RECORD_BYTES = 1024  # always the same, so that a rewrite in place leaves nothing of the last one
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a worker says of itself.

    machine: host name and boot id. token: random, its own. settings: digest of what shapes the
    shards it writes. lease_seconds: silent for longer, it is dead. tar: the shard being written,
    None between two. began: when it was begun, seconds in the file system's clock. num_done of
    num_inputs: how far it is. rate: inputs a second over the last two minutes.
    """

    host: str
    pid: int
    machine: str
    token: str
    settings: str
    lease_seconds: float
    tar: str | None = None
    began: float = 0.0
    num_done: int = 0
    num_inputs: int = 0
    rate: float = 0.0

    @property
    def name(self) -> str:
        """HOST:PID, for people."""
        return f"{self.host}:{self.pid}"


@dataclass(frozen=True)
class WorkerState:
    """A worker's file as it was found: its record (None if unreadable), last heartbeat in seconds
    of the file system's clock, whether this machine knows that its process has ended."""

    record: Record | None
    heartbeat: float
    has_ended: bool

    def is_dead(self, now: float) -> bool:
        """Whether nobody will go on with its work; `now` in the file system's clock."""
        lease = self.record.lease_seconds if self.record else LEASE_SECONDS
        return self.has_ended or now - self.heartbeat > lease

    @property
    def token(self) -> str:
        """The worker's own random text; empty if the file is unreadable."""
        return self.record.token if self.record else ""


def this_machine() -> str:
    """Host name and boot id: processes with the same one share a kernel, and so its locks."""
    try:
        boot = _BOOT_ID.read_text().strip()
    except OSError:  # not Linux; then no two processes know that they share a machine
        boot = secrets.token_hex(8)
    return f"{socket.gethostname()} {boot}"


def read_worker_state(path: Path) -> WorkerState | None:
    """The worker whose file, or claim, is `path`; None if there is none.

    Opened anew each time: over a network that asks the server for its present state.
    """
    try:
        with open(path, "rb") as source:
            data = source.read(_RECORD_BYTES)
            heartbeat = os.fstat(source.fileno()).st_mtime
            record = _parsed(data)
            is_here = record is not None and record.machine == this_machine()
            return WorkerState(record, heartbeat, is_here and _is_free(source.fileno()))
    except FileNotFoundError:
        return None


def workers_in(folder: Path) -> Iterator[WorkerState]:
    """Every worker whose file is in `folder`, dead ones too; none if there is no such folder."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    for name in names:
        if name.startswith(PREFIX) and (seen := read_worker_state(folder / name)) is not None:
            yield seen


def _parsed(data: bytes) -> Record | None:
    try:
        return Record(**json.loads(data))
    except (ValueError, TypeError):
        return None


def _is_free(descriptor: int) -> bool:
    """Whether nobody holds the file's lock. A shared lock is asked for, so that two who ask do not
    take each other for the holder. False on a file system without locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def clock(folder: Path) -> float:
    """Now, in seconds of the clock of the file system of `folder`; this machine's own clock where
    nothing may be written there."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
            probe.write(b"\n")
            os.fsync(probe.fileno())
            return os.fstat(probe.fileno()).st_mtime
    except OSError:
        return time.time()


class Heartbeat:
    """This worker's own file in `folder`, kept alive by a thread until `stop`.

    Raises FileNotFoundError if the folder is not there.
    """

    def __init__(self, folder: Path, *, settings: str, lease_seconds: float) -> None:
        token = secrets.token_hex(8)
        self.path = folder / f"{PREFIX}{token}"
        self.record = Record(
            host=socket.gethostname(),
            pid=os.getpid(),
            machine=this_machine(),
            token=token,
            settings=settings,
            lease_seconds=lease_seconds,
        )
        self.num_beats = 0
        self._counts = deque([(time.monotonic(), 0)])
        self._num_inputs_done = 0
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
            os.close(self._descriptor)
            raise
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def begin(self, tar: str, num_inputs: int) -> None:
        """Say that this worker now writes `tar`."""
        now = self.beat()
        self.record = replace(self.record, tar=tar, began=now, num_done=0, num_inputs=num_inputs)
        self.beat()

    def advance(self) -> None:
        """Count one more input; the next heartbeat tells it."""
        self._num_inputs_done += 1
        self.record = replace(self.record, num_done=self.record.num_done + 1)

    def end(self) -> None:
        """Say that this worker is between two shards."""
        self.record = replace(self.record, tar=None, num_done=0, num_inputs=0)
        self.beat()

    def beat(self) -> float:
        """Write the record once more; returns now in the file system's clock."""
        with self._writing:
            record = replace(self.record, rate=round(self._rate(), 3))
            data = json.dumps(asdict(record)).encode().ljust(_RECORD_BYTES)
            assert len(data) == _RECORD_BYTES, record
            os.pwrite(self._descriptor, data, 0)
            os.fsync(self._descriptor)  # over a network: now, and with the server's time
            self.num_beats += 1
            return os.fstat(self._descriptor).st_mtime

    def stop(self) -> None:
        """End the heartbeat and take the file away."""
        self._stopped.set()
        self._thread.join()
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _run(self) -> None:
        every = min(self.record.lease_seconds / 4, _BEAT_SECONDS)
        while not self._stopped.wait(every):
            with contextlib.suppress(OSError):  # a full or slow disk: the next one may succeed
                self.beat()

    def _rate(self) -> float:
        """Inputs a second over the last minutes."""
        now = time.monotonic()
        self._counts.append((now, self._num_inputs_done))
        while len(self._counts) > 2 and now - self._counts[0][0] > _RATE_SECONDS:
            self._counts.popleft()
        since, count = self._counts[0]
        return (self._num_inputs_done - count) / max(now - since, 1e-3)
