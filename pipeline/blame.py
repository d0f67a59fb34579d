"""Whether an error is the user's to mend, or a bug. Reached where errors end: worker and
command line."""

from __future__ import annotations

import traceback

_OURS = ("launch", "pipeline", "sharding", "stages")


def is_for_users(error: BaseException) -> bool:
    """True for a ValueError that our own code raised: its message says what was got, what was
    expected and what to do. One that a library raised under us is a bug, and wants a traceback."""
    if not isinstance(error, ValueError):
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").split(".")[0] in _OURS
