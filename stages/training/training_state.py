"""How far a training is: what its checkpoints hold beside weights and optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stages.training.data_loader import BatchSource


@dataclass(kw_only=True)
class TrainingState:
    """Steps done, place in the data, and counts; saved with each checkpoint."""

    step: int = 0
    """Optimizer steps done."""
    position: int = 0
    """The next micro-batch."""
    skipped_samples: int = 0
    """Of all ranks, since the start."""
    nonfinite_steps: int = 0
    """Steps that left the weights because a gradient was not finite."""
    best: float | None = None
    """The best value of the validation's criterion so far."""
    unvalidated: dict[str, float] | None = None
    """The line of metrics of this step, which is to be validated yet."""

    @staticmethod
    def of_saved(saved: dict[str, Any] | None, source: BatchSource) -> TrainingState:
        """Where to continue: what a checkpoint holds, or the start where there is none. Raises
        BoxlessError where `source` has another order of samples than the checkpoint."""
        if saved is None:
            return TrainingState()
        return TrainingState(
            step=saved["step"],
            position=source.position(saved["data"]),
            skipped_samples=saved["skipped"],
            nonfinite_steps=saved.get("nonfinite_steps", 0),
            best=saved.get("best"),
            unvalidated=saved.get("unvalidated"),
        )

    def as_saved(self, source: BatchSource) -> dict[str, Any]:
        """What a checkpoint holds, for `of_saved`."""
        return {
            "step": self.step,
            "skipped": self.skipped_samples,
            "nonfinite_steps": self.nonfinite_steps,
            "best": self.best,
            "unvalidated": self.unvalidated,
            "data": dict(source.state(self.position)),
        }
