"""Names the rank that is stalled: its process is stopped, or its step does not end."""

from __future__ import annotations

import contextlib
import os
import socket
import time

from launch.logs import write_stderr
from launch.processes.heartbeat import STACKS_SIGNAL, Beat, StallLimit

STOPPED_SECONDS = 15.0
"""A process that is stopped (SIGSTOP) for so long is named, and ended where it may start again."""


class StallReports:
    """Says on stderr, once each, which rank of a start is stalled; ``title`` is the job's."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._limit = StallLimit()
        self._reported: set[float] = set()

    def report(self, beats: list[Beat]) -> None:
        """Log ranks that are stopped, and a step that takes too long, by their heartbeats."""
        for beat in stopped(beats):
            if beat.since_seconds not in self._reported:
                self._reported.add(beat.since_seconds)
                log(
                    f"{self._title}: rank {beat.rank} on {socket.gethostname()} (process "
                    f"{beat.pid}) is stopped (SIGSTOP) after step {beat.step}"
                )
        if any(beat.step > 0 for beat in beats):
            self._report_step(beats)

    def _report_step(self, beats: list[Beat]) -> None:
        """A step that takes longer than it may (StallLimit)."""
        latest = max(beat.since_seconds for beat in beats)
        self._limit.note(latest)
        silent = time.monotonic() - latest
        if silent < self._limit.seconds or -latest in self._reported:
            return
        self._reported.add(-latest)
        slowest = min(beats, key=lambda beat: beat.step)
        log(
            f"{self._title}: no step for {silent:.0f} s on {socket.gethostname()}; rank "
            f"{slowest.rank} is at step {slowest.step}; Python stacks and the last collectives "
            "are in the ranks' logs"
        )
        for beat in beats:
            with contextlib.suppress(ProcessLookupError):
                os.kill(beat.pid, STACKS_SIGNAL)


def stopped(beats: list[Beat]) -> list[Beat]:
    """Those whose process is stopped, and that made no step for STOPPED_SECONDS."""
    now = time.monotonic()
    return [b for b in beats if now - b.since_seconds > STOPPED_SECONDS and b.process_state == "T"]


def log(text: str) -> None:
    """A line of the supervisor."""
    write_stderr(f"boxless: {time.strftime('%H:%M:%S')} {text}")
