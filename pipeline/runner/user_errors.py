"""Whether an error is the user's to mend, or a bug."""

from __future__ import annotations

import dis
import errno

_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the quota is used up: free some space",
    errno.EROFS: "the file system is read-only: name a place that can be written, with --run DIR",
    errno.EACCES: "permission is missing: name another place, or change the permissions",
    errno.EPERM: "permission is missing: name another place, or change the permissions",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.EIO: "the disk reports a fault: look at the machine's logs",
    errno.ENOTDIR: "a part of the path is a file: name another place",
    errno.ESTALE: "the network file system lost the file: check that the server is up",
}
"""What the machine does not grant, and what to do about it."""
_OURS = ("launch", "pipeline", "sharding", "stages")


def is_user_error(error: BaseException) -> bool:
    """True for a ValueError that a ``raise`` in our own code made: its message says what was got,
    what was expected and what to do. One that a library raised under us, from Python or from C, is
    a bug, and wants a traceback. True as well for what the machine does not grant: no space, no
    permission."""
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        return True
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


def describe_error(error: BaseException) -> str:
    """An error that is the user's in words: for one of the system's, which file, what happened and
    what to do."""
    if not isinstance(error, OSError) or error.errno not in _REMEDIES:
        return str(error)
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror}; {_REMEDIES[error.errno]}, then run the same command again."
