"""Logs and last words of ranks.

A rank calls ``open_log`` first. Its stderr then goes to ``rank-N.log``, and so does stdout on every
rank but the first, whose stdout stays the screen (a progress bar needs the terminal itself). A rank
that fails calls ``record_failure``; the process that launched it reads ``first_failure``.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

LOG_FOLDER_VARIABLE = "BOXLESS_LOG_FOLDER"
_NUM_TAIL_LINES = 40


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How a rank ended: ``message`` for whom it concerns, ``traceback`` unless that is the user."""

    rank: int
    message: str
    traceback: str | None
    time_seconds: float


def open_log(folder: Path, rank: int) -> None:
    """Send this process's stderr (and stdout, unless rank 0) to the end of its log."""
    folder.mkdir(parents=True, exist_ok=True)
    log = os.open(log_path(folder, rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 2)
    if rank > 0:
        os.dup2(log, 1)
    os.close(log)
    words = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(sys.argv)} (process {os.getpid()})"
    print(f"---- {words}", file=sys.stderr, flush=True)
    faulthandler.enable()


def log_path(folder: Path, rank: int) -> Path:
    """Where the log of ``rank`` stands."""
    return folder / f"rank-{rank}.log"


def launcher_log_path(folder: Path, node_rank: int) -> Path:
    """Where the log of what starts the ranks of a node stands."""
    return folder / f"launcher-{node_rank}.log"


def record_failure(folder: Path, rank: int, error: BaseException, *, is_users: bool) -> None:
    """Leave the last words of a rank. ``is_users``: the message alone says what to change."""
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    print(trace, file=sys.stderr, flush=True)
    failure = Failure(
        rank=rank,
        message=str(error),
        traceback=None if is_users else trace,
        time_seconds=time.time(),
    )
    _failure_path(folder, rank).write_text(json.dumps(asdict(failure)), "utf-8")


def clear_failures(folder: Path) -> None:
    """Forget what an earlier start left; before ranks are started."""
    for path in folder.glob("rank-*.failure.json"):
        path.unlink()


def first_failure(folder: Path) -> Failure | None:
    """The failure that came first: the others are often its echo (a peer that hung up)."""
    failures = []
    for path in folder.glob("rank-*.failure.json"):
        try:
            failures.append(Failure(**json.loads(path.read_text("utf-8"))))
        except ValueError:
            continue  # killed while it wrote; its log tells
    return min(failures, key=lambda failure: failure.time_seconds, default=None)


def tail(path: Path) -> str:
    """The last lines of a log; empty when there is none."""
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-_NUM_TAIL_LINES:])


def _failure_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.failure.json"
