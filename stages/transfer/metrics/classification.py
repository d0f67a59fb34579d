"""Accuracy of one label an example (SNLI-VE)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boxless.errors import BoxlessError


@dataclass(frozen=True, kw_only=True)
class AccuracyScore:
    """Shares, 0 to 1: overall, and of the examples of each label."""

    accuracy: float
    per_label: dict[str, float]
    num: int


def accuracy_score(labels: Mapping[Any, str], predictions: Mapping[Any, str]) -> AccuracyScore:
    """Labels and predictions by example id; predictions of no example are ignored.

    Raises ValueError where an example has no prediction, and without examples.
    """
    missing = [key for key in labels if key not in predictions]
    if missing or not labels:
        first = f", the first is {missing[0]!r}" if missing else ""
        raise BoxlessError(
            f"predictions: {len(missing)} of {len(labels)} examples have none{first}; expected a "
            "prediction for each of at least one example"
        )
    totals = Counter(labels.values())
    right = Counter(label for key, label in labels.items() if predictions[key] == label)
    return AccuracyScore(
        accuracy=sum(right.values()) / len(labels),
        per_label={label: right[label] / total for label, total in sorted(totals.items())},
        num=len(labels),
    )


def first_best(scores: Sequence[float]) -> int:
    """The index of the largest score, the first of equal ones. ValueError where one is NaN."""
    if any(score != score for score in scores):
        raise BoxlessError(f"scores: got {list(scores)}, expected numbers")
    return max(range(len(scores)), key=scores.__getitem__)
