"""The progress of each rank of a node, reported to the process that started it.

A rank writes a line of fixed length into a file of its own on every step; the supervisor of the
node reads it. The folder is the node's own, not the run's: nothing goes over the network.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from launch.environment import HEARTBEAT_FOLDER_VARIABLE
from launch.logs import write_stderr
from launch.processes.collectives import last_collectives

_STARTS = "starts"
STACKS_SIGNAL = signal.SIGUSR2
"""A rank that gets it writes the Python stacks of all its threads to its log."""
STALL_REPORT_SECONDS = 40.0
"""Without a step for so long, a rank writes its last collectives to its log, and its supervisor
asks it for its stacks."""
_STALL_STEPS = 3.0
_LINE_BYTES = 96
_SECONDS_BETWEEN_CHECKS = 2.0


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a rank said last: its number, process, step and since when (seconds of the machine's
    monotonic clock) that step stands."""

    rank: int
    pid: int
    step: int
    since_seconds: float

    @property
    def process_state(self) -> str:
        """The kernel's letter: R, S, D (waits for a disk), T (stopped), Z or X (gone)."""
        try:
            text = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return "X"
        return text.rpartition(")")[2].split()[0]


class StallLimit:
    """How long a step may take until it counts as a stall: STALL_REPORT_SECONDS, and by far longer
    than any before it, as steps of a large batch on a CPU take minutes."""

    def __init__(self) -> None:
        self._longest_seconds = 0.0
        self._latest: float | None = None

    def note(self, at: float) -> None:
        """A step was done at this time, in seconds of any clock; the same again is no step."""
        if self._latest is not None:
            self._longest_seconds = max(self._longest_seconds, at - self._latest)
        self._latest = at

    @property
    def seconds(self) -> float:
        """Of the step that is under way."""
        return max(STALL_REPORT_SECONDS, _STALL_STEPS * self._longest_seconds)


class Heartbeat:
    """A rank's side; without HEARTBEAT_FOLDER_VARIABLE in the environment it does nothing."""

    def __init__(self, rank: int) -> None:
        folder = os.environ.get(HEARTBEAT_FOLDER_VARIABLE)
        self._rank, self._file = rank, -1
        self._step, self._since = -1, time.monotonic()
        self._limit = StallLimit()
        if folder:
            flags = os.O_WRONLY | os.O_CREAT
            self._file = os.open(Path(folder) / f"rank-{rank}", flags, 0o600)
            faulthandler.register(STACKS_SIGNAL, file=sys.stderr, all_threads=True)
            self.beat(-1)
            threading.Thread(target=self._watch, name="stalls", daemon=True).start()

    def beat(self, step: int) -> None:
        """Say that ``step`` steps are done."""
        if self._file >= 0:
            self._step, self._since = step, time.monotonic()
            if step > 0:
                self._limit.note(self._since)
            line = f"{self._rank} {os.getpid()} {step} {self._since:.3f}"
            os.pwrite(self._file, line.ljust(_LINE_BYTES).encode(), 0)

    def _watch(self) -> None:
        """Write the last collectives once for each step that does not end."""
        reported = None
        while True:
            time.sleep(STALL_REPORT_SECONDS / 8)
            since = self._since
            if self._step > 0 and since != reported:
                if time.monotonic() - since > self._limit.seconds:
                    reported = since
                    lines = last_collectives() or ["no collective is recorded"]
                    write_stderr("\n".join([f"no step after step {self._step}:", *lines]))


def note_start() -> None:
    """Say that the ranks of this node were started: called by the first of them, before anything
    that may fail."""
    folder = os.environ.get(HEARTBEAT_FOLDER_VARIABLE)
    if folder and os.environ.get("LOCAL_RANK") == "0":
        with (Path(folder) / _STARTS).open("ab") as file:
            file.write(b".")


def num_starts(folder: Path) -> int:
    """How often that was."""
    try:
        return (folder / _STARTS).stat().st_size
    except OSError:
        return 0


def read_beats(folder: Path) -> list[Beat]:
    """What every rank of the node said last, by rank."""
    beats = []
    for path in folder.glob("rank-*"):
        try:
            rank, pid, step, since = path.read_text().split()
        except (OSError, ValueError):
            continue  # just being made
        beats.append(Beat(rank=int(rank), pid=int(pid), step=int(step), since_seconds=float(since)))
    return sorted(beats, key=lambda beat: beat.rank)


def exit_after_parent(grace_seconds: float) -> None:
    """End this process ``grace_seconds`` after its parent ended, whatever it waits for.

    A signal alone does not end a rank that waits in a collective or for data.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN_CHECKS)
        time.sleep(grace_seconds)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="exit-after-parent", daemon=True).start()
