"""Counts failed attempts at a shard, so that one bad shard cannot stop all others.

OUT/.claims/TAR.failures has one JSON line an attempt. It is written by the holder of the shard's
claim alone and removed when the shard is done.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from sharding.writing.atomic import naming

FAILURES = ".failures"
MAX_FAILURES = 2
# A killed worker says little of its shard: it may have been preempted, or its node lost.
MAX_DEATHS = 5
_MAX_REASON = 500


@dataclass(frozen=True, kw_only=True)
class FailedAttempt:
    """One attempt: what ended it ("error", "stalled" or "died"), whose it was, and why."""

    kind: Literal["error", "stalled", "died"]
    worker: str
    reason: str


def record_failure(folder: Path, tar: str, attempt: FailedAttempt) -> None:
    """Add an attempt at `tar`; `folder` is that of the claims."""
    fields = {**asdict(attempt), "reason": attempt.reason[:_MAX_REASON]}
    line = json.dumps(fields).encode() + b"\n"
    descriptor = os.open(folder / (tar + FAILURES), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        with naming(folder / (tar + FAILURES)):
            os.write(descriptor, line)
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_failures(folder: Path, tar: str) -> list[FailedAttempt]:
    """The failed attempts at `tar`, in order."""
    attempts = []
    with contextlib.suppress(OSError):
        for line in (folder / (tar + FAILURES)).read_bytes().splitlines():
            with contextlib.suppress(ValueError, TypeError):  # cut by a kill
                attempts.append(FailedAttempt(**json.loads(line)))
    return attempts


def is_exhausted(attempts: Sequence[FailedAttempt]) -> bool:
    """Whether the shard is to be skipped: two errors or stalls, or five deaths of its workers."""
    num_deaths = sum(attempt.kind == "died" for attempt in attempts)
    return len(attempts) - num_deaths >= MAX_FAILURES or num_deaths >= MAX_DEATHS


def clear_failures(folder: Path, tar: str) -> None:
    """The shard is done, or is to be tried again."""
    with contextlib.suppress(OSError):
        (folder / (tar + FAILURES)).unlink()


def clear_exhausted(folder: Path) -> None:
    """Give every shard that was skipped another chance."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            tar = name.removesuffix(FAILURES)
            if tar != name and is_exhausted(read_failures(folder, tar)):
                clear_failures(folder, tar)
