"""A process that dies before a chosen one of the calls by which it changes the disk."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence


def die_before(moment: int, names: Sequence[str]) -> None:
    """From here on the `moment`-th call of the functions `names` of `os` is a SIGKILL."""
    num_calls = 0

    def counted(real: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal num_calls
            num_calls += 1
            if num_calls == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for name in names:
        setattr(os, name, counted(getattr(os, name)))
