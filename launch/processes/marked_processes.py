"""Finds the processes of one start by a variable in their environment (Linux).

Ranks have sessions of their own and may lose their parent, so neither a process group nor a tree
finds all of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15  # linux/prctl.h


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Get a signal when the parent process ends, however it ends (Linux; elsewhere nothing).

    Without it, ``kill -9`` of a supervisor would leave ranks that write beside their successors.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def set_process_name(name: str) -> None:
    """What ``top``, ``ps -A`` and ``pgrep`` call this process: 15 bytes at most (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def marked_processes(name: str, value: str) -> list[int]:
    """All processes that were started with the variable ``name`` at ``value``, but this one."""
    marker, found = f"{name}={value}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if marker in path.read_bytes().split(b"\0") and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
    return found


def kill_marked(name: str, value: str) -> None:
    """SIGKILL to all of them. Several rounds: one may start another while they are looked for."""
    for _ in range(10):
        pids = marked_processes(name, value)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not pids:  # a zombie has no environment
            return
