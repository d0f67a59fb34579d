"""Starts and ends processes on this machine, and describes how they ended."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from launch.job import Job, UserError
from launch.logs import clear_failures


def prepare_logs(job: Job) -> None:
    """Make the log folder, and remove the failures of an earlier start. UserError where it cannot
    be made."""
    try:
        job.log_folder.mkdir(parents=True, exist_ok=True)
        if job.node_rank == 0:
            clear_failures(job.paths)
    except OSError as error:
        raise UserError(f"cannot write to the log folder {job.log_folder}: {error}") from error


def missing_command(command: str) -> UserError:
    """A launcher's command is missing."""
    return UserError(
        f"{command} is not on this machine; `boxless doctor` lists what is, and --launcher chooses "
        "another launcher."
    )


@contextmanager
def forwarded_signals(
    *, terminate: Callable[[], object], force_kill: Callable[[], object]
) -> Iterator[list[int]]:
    """While inside, the first SIGTERM or SIGINT calls ``terminate`` and later ones ``force_kill``;
    gives the numbers that came, in order."""
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        (terminate if len(received) == 1 else force_kill)()

    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may have signal handlers
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)


def state_of(returncode: int) -> str:
    """``ended with exit status 3``, ``stopped by SIGTERM`` or ``killed by SIGKILL (out of
    memory?)``; of a crash, what to do."""
    if returncode == 128 + signal.SIGTERM:
        return "stopped by a SIGTERM that was not sent by this command"
    if returncode >= 0:
        return f"ended with exit status {returncode}"
    hint = " (out of memory?)" if returncode == -signal.SIGKILL else ""
    if -returncode in _CRASHES:
        hint = (
            " (a crash in a compiled library or the driver, not in Python: the stack in the log says "
            "where; run the same command to continue, and if it comes again, update that library)"
        )
    return f"killed by {signal.Signals(-returncode).name}{hint}"


def worker_command(job: Job) -> list[str]:
    """``python -m MODULE ARGS...``: what one rank runs."""
    return [sys.executable, "-m", job.module, *job.args]
