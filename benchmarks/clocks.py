"""Two ways to time a benchmark.

"wall" is wall-clock time. "cpu" counts what the processor spent on this process: on a machine
that others use, and with one thread, about what an idle core would take.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

Clock = Callable[[], float]


def wall_clock() -> float:
    """Seconds; what a GPU was given to do is waited for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


CLOCKS: dict[str, Clock] = {"wall": wall_clock, "cpu": time.process_time}


def seconds(way: Callable[[], object], clock: Clock) -> float:
    """Seconds that a call of `way` takes."""
    began = clock()
    way()
    return clock() - began
