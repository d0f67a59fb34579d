"""Imports torchrun and the modules that PRELOAD_VARIABLE names, in the process that ranks are
forked from. What they print goes to the log of the launcher, not between the lines of the ranks.

A module that cannot be imported is left to the ranks: there its error is logged and reported.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys

from launch.environment import PRELOAD_VARIABLE
from launch.processes.marked_processes import end_with_parent


def preload(names: list[str]) -> None:
    """Import them all."""
    stdout = os.dup(1)
    os.dup2(2, 1)
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    sys.stdout.flush()
    os.dup2(stdout, 1)
    os.close(stdout)


# The ranks keep a pipe of this process open, so it would outlive the torchrun that started it.
end_with_parent(signal.SIGKILL)
preload(["torch.distributed.run", *os.environ.get(PRELOAD_VARIABLE, "").split()])
