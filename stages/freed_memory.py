"""Lets malloc keep freed memory, so that a process need not ask the kernel for it again."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h
_TOP_PAD_BYTES = 64 * 1024 * 1024  # the largest heap that glibc gives a thread


def keep_freed_memory() -> None:
    """Have glibc's malloc reuse freed blocks of any size; elsewhere nothing changes.

    By default malloc gives large blocks back to the kernel as soon as they are freed. A step on
    the CPU allocates and frees the same large tensors every time, and the kernel then clears every
    page of them again, which takes longer than many an operator. The price is that memory which
    is needed only for a moment stays with the process.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)
    mallopt(_M_TOP_PAD, _TOP_PAD_BYTES)
