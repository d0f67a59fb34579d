"""Logs of ranks, and a summary of how each failed.

A rank calls ``open_log`` first. Its stderr then goes to ``rank-N.log``, and so does stdout on every
rank but the first, whose stdout stays the screen (a progress bar needs the terminal itself). A rank
that fails calls ``record_failure``; the process that launched it reads ``read_failures``.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.environment import HEARTBEAT_FOLDER_VARIABLE
from launch.job import LaunchError, UserError
from launch.paths import JobPaths

LOG_FOLDER_VARIABLE = "BOXLESS_LOG_FOLDER"
START_VARIABLE = "BOXLESS_START"
"""Names the start that a rank belongs to: a failure of an earlier one is not reported again."""
_NUM_TAIL_LINES = 40


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How a rank ended: ``message`` for the reader, ``traceback`` unless the user caused it.
    ``is_permanent``: another start would fail in the same way."""

    rank: int
    message: str
    traceback: str | None
    time_seconds: float
    host: str = ""
    start: str = ""
    is_permanent: bool = False

    def as_error(self, title: str, paths: JobPaths) -> UserError | LaunchError:
        """The error that the launching process raises for it."""
        if self.traceback is None:
            return UserError(self.message)
        where = f" on {self.host}" if self.host else ""
        return LaunchError(
            f"{title}: rank {self.rank}{where} failed: {_last_line(self.traceback)}",
            paths.rank_log(self.rank),
            self.traceback,
            is_permanent=self.is_permanent,
        )


def open_log(folder: Path, rank: int) -> None:
    """Send this process's stderr (and stdout, unless rank 0) to the end of its log."""
    folder.mkdir(parents=True, exist_ok=True)
    log = os.open(JobPaths(folder).rank_log(rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 2)
    if rank > 0:
        os.dup2(log, 1)
    os.close(log)
    command = " ".join(sys.argv)
    place = f"process {os.getpid()} on {socket.gethostname()}"
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    write_stderr(f"---- {now} {command} ({place})")
    faulthandler.enable()


def record_failure(
    folder: Path,
    rank: int,
    error: BaseException,
    *,
    is_users: bool,
    is_permanent: bool = False,
    message: str | None = None,
) -> None:
    """Record how a rank failed. ``is_users``: the message alone says what to change;
    ``message``: instead of the error's own."""
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    write_stderr(trace)
    failure = Failure(
        rank=rank,
        message=message or str(error),
        traceback=None if is_users else trace,
        time_seconds=time.time(),
        host=socket.gethostname(),
        start=os.environ.get(START_VARIABLE, ""),
        is_permanent=is_users or is_permanent,
    )
    own = os.environ.get(HEARTBEAT_FOLDER_VARIABLE)  # of this node: the other disk may be full
    for place in [folder, Path(own)] if own else [folder]:
        with contextlib.suppress(OSError):
            JobPaths(place).failure(rank).write_text(json.dumps(asdict(failure)), "utf-8")
            return


def write_stderr(text: str) -> None:
    """A line to this process's stderr; on a full disk none, and no error."""
    with contextlib.suppress(OSError):
        sys.stderr.flush()
        os.write(2, f"{text.rstrip()}\n".encode("utf-8", "backslashreplace"))


def clear_failures(paths: JobPaths) -> None:
    """Remove what an earlier start left; before ranks are started."""
    for path in paths.failures:
        path.unlink(missing_ok=True)


def read_failures(paths: JobPaths, start: str | None = None) -> list[Failure]:
    """Failures, in order: the others often follow from it (a peer that hung up).
    ``start``: only those of that start, and of ranks that DeepSpeed started over ssh, which do not
    know theirs."""
    failures = []
    for path in paths.failures:
        try:
            failures.append(Failure(**json.loads(path.read_text("utf-8"))))
        except (OSError, ValueError, TypeError):
            continue  # killed while it was written; the log has the error
    failures = [one for one in failures if start is None or one.start in (start, "")]
    return sorted(failures, key=lambda failure: failure.time_seconds)


def tail(path: Path) -> str:
    """The last lines of a log; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65536))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-_NUM_TAIL_LINES:])


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:200] if lines else ""
