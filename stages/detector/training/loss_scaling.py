"""Loss scaling for fp16, so that small gradients do not become zero.

The rule is that of torch.amp.GradScaler: halved by a step whose gradients are not finite, which
leaves the weights, and doubled after so many finite ones.
"""

from __future__ import annotations

from dataclasses import dataclass

START = 2.0**16
SOUND_STEPS_TO_DOUBLE = 2000
LEAST = 2.0**-14


@dataclass(kw_only=True)
class LossScale:
    """factor: of the loss. sound_steps: finite ones since it last changed."""

    factor: float = 1.0
    sound_steps: int = 0

    def note(self, is_finite: bool) -> None:
        """Take in whether the gradients of a step were finite."""
        self.sound_steps = self.sound_steps + 1 if is_finite else 0
        if not is_finite:
            self.factor /= 2
        elif self.sound_steps == SOUND_STEPS_TO_DOUBLE:
            self.factor, self.sound_steps = self.factor * 2, 0


def start_of(precision: str) -> LossScale:
    """What a training in `precision` begins with; other precisions than fp16 need none."""
    return LossScale(factor=START if precision == "fp16" else 1.0)
