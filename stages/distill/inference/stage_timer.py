"""Times the steps of an extraction."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator

DEVICE = "device"
"""The part in which a teacher runs, which should be nearly all of the time."""


class Clock:
    """Seconds spent in each part of the work, whose threads overlap, and since its start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._began = time.perf_counter()

    def start(self) -> None:
        """Begin to count, at nothing."""
        with self._lock:
            self._seconds.clear()
            self._began = time.perf_counter()

    @contextlib.contextmanager
    def during(self, part: str, *, without: str | None = None) -> Iterator[None]:
        """Count the time in the block to `part`, but for what is counted to `without` in it."""
        began = self._now(without)
        try:
            yield
        finally:
            with self._lock:
                self._seconds[part] += self._now(without) - began

    def _now(self, without: str | None) -> float:
        """A clock that is paused during `without`."""
        return time.perf_counter() - (self._seconds[without] if without else 0.0)

    def seconds(self, part: str) -> float:
        """What was counted to `part` so far."""
        with self._lock:
            return self._seconds[part]

    def passed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._began

    def share(self, part: str) -> float:
        """Seconds of `part` a second since the start."""
        return self.seconds(part) / max(self.passed(), 1e-9)
