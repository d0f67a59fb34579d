"""Reasons of failed pictures, worded the same in every run."""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass, field

from boxless.errors import BoxlessError
from sharding.coordination.fatal_errors import is_device_error
from sharding.format.schema import Failure


class DistillError(BoxlessError):
    """Distillation cannot continue; the text says what was got, what was expected, what to do."""


@dataclass(frozen=True, kw_only=True)
class TeacherFailure(Failure):
    """A picture that the teacher failed on. Many in a row are the teacher's fault, or the
    machine's, so `label.py` counts them.

    ran_out: whether memory did, for this picture alone. error: what the teacher raised.
    """

    ran_out: bool = False
    error: Exception | None = field(default=None, compare=False, repr=False)


def failure(key: str, step: str, error: Exception) -> Failure:
    """The picture `key` failed in `step` for a fault of its own."""
    return Failure(key=key, reason=_reason(step, error))


def teacher_failure(key: str, step: str, error: Exception) -> TeacherFailure:
    """The teacher failed in `step` on the picture `key`."""
    # What was on the way is not kept alive with the error: it may fill a device's memory.
    traceback.clear_frames(error.__traceback__)
    return TeacherFailure(key=key, reason=_reason(step, error), error=error)


def out_of_memory(key: str, step: str) -> TeacherFailure:
    """Memory ran out in `step` on the picture `key` alone."""
    reason = f"{step}: memory ran out on this picture alone"
    return TeacherFailure(key=key, reason=reason, ran_out=True)


def check_device(key: str, error: Exception) -> None:
    """DistillError where `error`, met on picture `key`, is the device's."""
    if is_device_error(error):
        raise DistillError(
            f"the device failed on picture {key}: {_reason('device', error)}; expected a working "
            "one, and an error of CUDA stays until the process ends. Nothing of this shard was "
            "written. Start again: finished shards are kept. If it comes back, check the device."
        ) from error


def _reason(step: str, error: Exception) -> str:
    """The same in every run: the error's first line, without addresses."""
    text = re.sub(r" <[^>]* at 0x[0-9a-f]+>", "", str(error)).strip()
    lines = text.splitlines() or ["no message"]
    return f"{step}: {type(error).__name__}: {lines[0][:200]}"
