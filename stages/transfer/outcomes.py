"""Outcomes of a task's predictions for its page: calibration, and right and wrong examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stages.transfer.example import Example

NUM_BINS = 10
NUM_EACH = 6
"""Examples kept of each kind."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One prediction beside the truth. said, truth: in words; right: 0 to 1 (VQA's accuracy has
    values between); confidence: the probability that the student gives what it said, None where the
    task has no such number. Where the answer is a place: the point x, y and the true boxes xyxy, as
    shares of the picture."""

    said: str
    truth: str
    right: float
    confidence: float | None = None
    point: Sequence[float] | None = None
    boxes: Sequence[Sequence[float]] = ()


def summarize(examples: Sequence[Example], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """ "calibration", "expected_calibration_error" (None where no prediction has a confidence) and
    "examples": the first ones that went wrong and the first that went right, each of other
    pictures."""
    bins = calibration(outcomes)
    total = sum(entry["num"] for entry in bins)
    error = (
        sum(e["num"] * abs(e["confidence"] - e["right"]) for e in bins) / total if total else None
    )
    shown = []
    for is_right in (False, True):
        seen: set[tuple[Any, ...]] = set()
        for example, outcome in zip(examples, outcomes):
            if (outcome.right >= 0.5) == is_right and example.images not in seen:
                seen.add(example.images)
                shown.append(_shown(example, outcome))
            if len(seen) == NUM_EACH:
                break
    return {"calibration": bins, "expected_calibration_error": error, "examples": shown}


def calibration(outcomes: Sequence[Outcome]) -> list[dict[str, float]]:
    """Ten bins of equal width of confidence (Guo et al., ICML 2017): of each that is not empty, how
    many predictions, their mean confidence, and the share of them that is right."""
    bins: dict[int, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.confidence is not None:
            number = min(NUM_BINS - 1, int(outcome.confidence * NUM_BINS))
            bins.setdefault(number, []).append(outcome)
    return [
        {
            "num": len(members),
            "confidence": sum(o.confidence or 0.0 for o in members) / len(members),
            "right": sum(o.right for o in members) / len(members),
        }
        for _, members in sorted(bins.items())
    ]


def _shown(example: Example, outcome: Outcome) -> dict[str, Any]:
    text = example.texts[0]
    words = text if isinstance(text, str) else " ".join(part for _, part in text)
    if "start" in example.info:
        words = words[example.info["start"] : example.info["end"]]
    return {
        "id": example.id,
        "images": [str(image) for image in example.images],
        "text": words,
        **asdict(outcome),
    }
