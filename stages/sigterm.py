"""Turns SIGTERM into SystemExit, so that claims are released and files closed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

_AGAIN_SECONDS = 0.05


def exit_at_sigterm() -> None:
    """Make SIGTERM raise SystemExit, status 143, in the main thread.

    Python ignores an exception that leaves a `__del__`. A signal that arrives inside one is sent
    again a moment later.
    """

    def exit_or_wait(number: int, frame: FrameType | None) -> None:
        if _is_in_finalizer(frame):
            threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number)).start()
            return
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, exit_or_wait)


def _is_in_finalizer(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False
