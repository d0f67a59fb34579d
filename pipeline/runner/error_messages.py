"""What the user is shown about an error: a message, or a traceback with how to report it."""

from __future__ import annotations

import errno
import traceback

from boxless.errors import BoxlessError

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


def is_for_the_user(error: BaseException) -> bool:
    """True where a rank's error would come again until the user changes something: one of ours, or
    something that the machine does not grant. Other errors of the system may pass."""
    return isinstance(error, BoxlessError) or (
        isinstance(error, OSError) and error.errno in _REMEDIES
    )


def error_message(error: BaseException) -> str:
    """The error in words: for one of the system's, which file, what happened and what to do."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error) or type(error).__name__
    place = f"{error.filename}: " if error.filename else ""
    remedy = _REMEDIES.get(error.errno or 0, "check the path and the machine")
    return f"{place}{error.strerror}; {remedy}, then run the same command again."


def bug_report(error: BaseException) -> str:
    """An unexpected error: its traceback, and how to report it."""
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return (
        f"{trace}\nThis is a bug in Boxless. Please open an issue with the traceback above, the "
        "command, and what `boxless doctor --json` prints."
    )
