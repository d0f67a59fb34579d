"""Whether an error is the user's to mend, or a bug. Reached where errors end: worker and
command line."""

from __future__ import annotations

import dis

_OURS = ("launch", "pipeline", "sharding", "stages")


def is_user_error(error: BaseException) -> bool:
    """True for a ValueError that a ``raise`` in our own code made: its message says what was got,
    what was expected and what to do. One that a library raised under us, from Python or from C, is
    a bug, and wants a traceback."""
    if not isinstance(error, ValueError):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    frame = trace.tb_frame
    is_ours = frame.f_globals.get("__name__", "").split(".")[0] in _OURS
    instruction = dis.opname[frame.f_code.co_code[trace.tb_lasti]]
    return is_ours and instruction == "RAISE_VARARGS"
