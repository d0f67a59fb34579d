"""One child process, run to its end: signals are passed on, and it never outlives this process.

Reached from the launchers. The child gets a session of its own, so that Ctrl-C in a terminal
reaches it once, through here, and not a second time from the terminal.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from launch.job import Job, LaunchError, Stopped, UserError
from launch.logs import (
    LOG_FOLDER_VARIABLE,
    clear_failures,
    first_failure,
    launcher_log_path,
    log_path,
    tail,
)

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run_process(command: list[str], job: Job) -> None:
    """Run ``command`` with the environment of ``job``; its stderr goes to ``launcher-NODE.log``.

    SIGTERM or SIGINT here becomes one SIGTERM to the child, so that it can checkpoint; a second one
    kills it. Raises Stopped after that, UserError when the command is not here or a rank blames
    what it was asked, and LaunchError when the child ends with anything else but 0.
    """
    prepare_logs(job)
    env = os.environ | job.env | {LOG_FOLDER_VARIABLE: str(job.log_folder.resolve())}
    sys.stdout.flush()
    with launcher_log_path(job.log_folder, job.node_rank).open("wb") as log:
        try:
            process = subprocess.Popen(
                command, env=env, stderr=log, start_new_session=True, preexec_fn=end_with_parent
            )
        except FileNotFoundError as error:
            raise not_here(command[0]) from error
    with signals_passed_on(
        tell=lambda: process.send_signal(signal.SIGTERM),
        insist=lambda: os.killpg(process.pid, signal.SIGKILL),
    ) as received:
        process.wait()
    if received:
        raise Stopped(received[0])
    if process.returncode != 0:
        raise last_words(job) or _silent_end(job, process.returncode)


def prepare_logs(job: Job) -> None:
    """Make the log folder, and forget the last words of an earlier start."""
    job.log_folder.mkdir(parents=True, exist_ok=True)
    if job.node_rank == 0:
        clear_failures(job.log_folder)


def not_here(command: str) -> UserError:
    """A launcher's command is missing."""
    return UserError(
        f"{command} is not on this machine; `boxless doctor` tells what is, and --launcher chooses "
        "another launcher."
    )


def end_with_parent() -> None:
    """Get SIGTERM when the parent process ends, however it ends (Linux; elsewhere nothing).

    Without it, ``kill -9`` of a conductor would leave ranks that write beside their successors.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


@contextmanager
def signals_passed_on(
    *, tell: Callable[[], object], insist: Callable[[], object]
) -> Iterator[list[int]]:
    """While inside, the first SIGTERM or SIGINT calls ``tell`` and later ones ``insist``; gives the
    numbers that came, in order."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        (tell if len(received) == 1 else insist)()

    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may have signal handlers
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def last_words(job: Job) -> UserError | LaunchError | None:
    """What the rank that failed first says of itself; None when none had the time."""
    failure = first_failure(job.log_folder)
    if failure is None:
        return None
    if failure.traceback is None:
        return UserError(failure.message)
    log = log_path(job.log_folder, failure.rank)
    return LaunchError(f"{job.title}: rank {failure.rank} failed", log, failure.traceback)


def _silent_end(job: Job, returncode: int) -> LaunchError:
    log = launcher_log_path(job.log_folder, job.node_rank)
    if not tail(log).strip():  # the rank was the child itself, and was killed without a word
        log = log_path(job.log_folder, 0)
    return LaunchError(f"{job.title}: {state_of(returncode)}", log, tail(log))


def state_of(returncode: int) -> str:
    """``ended with exit status 3``, ``told to stop`` or ``killed by SIGKILL (out of memory?)``."""
    if returncode == 128 + signal.SIGTERM:
        return "told to stop, by another than this command"
    if returncode >= 0:
        return f"ended with exit status {returncode}"
    hint = " (out of memory?)" if returncode == -signal.SIGKILL else ""
    return f"killed by {signal.Signals(-returncode).name}{hint}"


def worker_command(job: Job) -> list[str]:
    """``python -m MODULE ARGS...``: what one rank runs."""
    return [sys.executable, "-m", job.module, *job.args]
