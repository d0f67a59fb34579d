"""Shows errors to the user: as a message, or as a traceback with how to report it."""

from __future__ import annotations

import errno
import os
import re
import traceback

from boxless.errors import BoxlessError
from sharding.coordination.fatal_errors import is_device_error

_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the quota is used up: free some space",
    errno.EROFS: "the file system is read-only: choose a writable location",
    errno.EACCES: "permission is missing: choose another location, or change the permissions",
    errno.EPERM: "permission is missing: choose another location, or change the permissions",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.EIO: "the disk reports an error: check the machine's logs",
    errno.EFBIG: "the file would be larger than is allowed: raise the limit (ulimit -f)",
    errno.EAGAIN: "no more processes or threads are allowed: raise the limit (ulimit -u), or take "
    "fewer workers or ranks",
    errno.ENOMEM: "the memory is used up: use fewer workers or ranks, smaller batches or pictures, "
    "or raise the limit (ulimit -v, or that of the container)",
    errno.EEXIST: "a file is where a folder is expected: move it, or choose another location",
    errno.EISDIR: "a folder is where a file is expected: name a file",
    errno.EADDRINUSE: "another program uses the port: choose another one",
    errno.EADDRNOTAVAIL: "the address is not one of this machine's: choose one of them",
    errno.ENOTDIR: "a part of the path is a file: choose another location",
    errno.ESTALE: "the network file system lost the file: check that the server is up",
}
"""What the machine does not grant, and what to do about it."""
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
_NUMBER_IN_TEXT = re.compile(r"\(os error (\d+)\)")
_IN_OTHER_WORDS = {
    "can't start new thread": errno.EAGAIN,
    "can't allocate memory": errno.ENOMEM,  # PyTorch on a CPU
    "not enough memory": errno.ENOMEM,
    "out of memory": errno.ENOMEM,  # PyTorch on a GPU
}
"""What libraries write of it in a RuntimeError."""


def is_for_the_user(error: BaseException) -> bool:
    """True where a rank's error would come again until the user changes something: one of ours, or
    something that the machine does not grant. Other errors of the system may pass."""
    return isinstance(error, BoxlessError) or _refusal(error) is not None


def error_message(error: BaseException) -> str:
    """The error in words: for one of the system's, which file, what happened and what to do."""
    if is_device_error(error):
        return _of_device(error)
    system = _refusal(error) or error
    if not isinstance(system, OSError) or system.strerror is None:
        return str(error) or type(error).__name__
    name = system.filename2 or system.filename  # of a renaming, the name that the user knows
    place = f"{name}: " if name else ""
    remedy = _REMEDIES.get(system.errno or 0, "check the path and the machine")
    if not name and system.errno == errno.ENOENT and _is_folder_gone():
        remedy = "the folder where you are was removed: go to another one (cd)"
    return f"{place}{system.strerror}; {remedy}, then run the same command again."


def _of_device(error: BaseException) -> str:
    first = (str(error).splitlines() or [""])[0][:200]
    return (
        f"the device failed: {first}; such an error stays until the process ends, so run the same "
        "command again. If it comes back, check the device (nvidia-smi, dmesg); with "
        "CUDA_LAUNCH_BLOCKING=1 the traceback shows the step that failed."
    )


def _is_folder_gone() -> bool:
    try:
        return not os.getcwd()
    except FileNotFoundError:
        return True


def _refusal(error: BaseException) -> OSError | None:
    """The resource that the machine lacks (disk, memory, files), where `error` is about one.

    Of a write that fails numpy raises an OSError without a number, safetensors an error of its own
    with the number in its text, and PyTorch a RuntimeError about the rest of its file, after the
    OSError. Memory that ran out is a MemoryError, or a RuntimeError of PyTorch.
    """
    if isinstance(error, OSError):
        if error.errno in _REMEDIES:
            return error
        is_short = error.errno is None and _SHORT_WRITE.fullmatch(str(error))
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if is_short else None
    if found := _NUMBER_IN_TEXT.search(str(error)):
        number = int(found[1])
        return OSError(number, os.strerror(number)) if number in _REMEDIES else None
    if isinstance(error, MemoryError):
        # Of a DataLoader's worker it has a whole traceback as its text.
        first = (str(error).splitlines() or [os.strerror(errno.ENOMEM)])[0]
        return OSError(errno.ENOMEM, first.rstrip(". ")[:200])
    for words, number in _IN_OTHER_WORDS.items():
        if isinstance(error, RuntimeError) and words in str(error):
            return OSError(number, str(error).splitlines()[0].rstrip(". ")[:200])
    before = error.__context__
    if isinstance(error, RuntimeError) and "inline_container" in str(error) and before is not None:
        return _refusal(before)
    return None


def bug_report(error: BaseException) -> str:
    """An unexpected error: its traceback, and how to report it."""
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return (
        f"{trace}\nThis is a bug in Boxless. Please open an issue with the traceback above, the "
        "command, and what `boxless doctor --json` prints."
    )
