"""Accuracy and consistency of NLVR2 and NLVR (lil-lab/nlvr, `metrics.py` and `metrics_images.py`).

Consistency is the share of groups whose every example is right. NLVR2 groups the image pairs of one
sentence (split, set and sentence number), NLVR the images of one presentation (the first number).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from boxless.errors import BoxlessError


@dataclass(frozen=True, kw_only=True)
class ConsistencyScore:
    """Shares, 0 to 1, and what they are of."""

    accuracy: float
    consistency: float
    num_examples: int
    num_groups: int


def nlvr2_score(labels: Mapping[str, str], predictions: Mapping[str, str]) -> ConsistencyScore:
    """Scores by identifier (SPLIT-SET-PAIR-SENTENCE). Labels and predictions are "True" or "False";
    case does not count, and any other prediction is wrong. Extra predictions are ignored."""
    return _score(labels, predictions, _nlvr2_group)


def nlvr_score(labels: Mapping[str, str], predictions: Mapping[str, str]) -> ConsistencyScore:
    """As nlvr2_score, by NLVR's identifiers (PRESENTATION-EXAMPLE, or with an order of the boxes).
    Extra predictions are refused, as NLVR's script does."""
    extra = [identifier for identifier in predictions if identifier not in labels]
    if extra:
        raise BoxlessError(
            f"predictions: {len(extra)} are of no example, the first is {extra[0]}; expected one "
            "for each example and no other"
        )
    return _score(labels, predictions, lambda identifier: identifier.split("-")[0])


def nlvr_identifier(image_name: str) -> str:
    """The identifier in an image's name: "dev-3140-2-0.png" -> "3140-2-0"."""
    return image_name.split("-", 1)[-1].split(".", 1)[0]


def parse_predictions(text: str) -> dict[str, str]:
    """A prediction file, a line `identifier,label`; further columns are ignored and a repeated
    identifier's last line counts. Raises ValueError, with the line, where one has no label."""
    predictions = {}
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.strip().split(",")
        if len(fields) < 2:
            raise BoxlessError(f"line {number}: got {line!r}, expected identifier,label")
        predictions[fields[0]] = fields[1]
    return predictions


def format_predictions(predictions: Mapping[str, str]) -> str:
    """The file that `parse_predictions` reads: the official submission."""
    return "".join(f"{identifier},{label}\n" for identifier, label in predictions.items())


def _nlvr2_group(identifier: str) -> Hashable:
    split, set_number, _, sentence = identifier.split("-")
    return split, set_number, sentence


def _score(
    labels: Mapping[str, str],
    predictions: Mapping[str, str],
    group_of: Callable[[str], Hashable],
) -> ConsistencyScore:
    if not labels:
        raise BoxlessError("labels: got none, expected at least one example")
    missing = [identifier for identifier in labels if identifier not in predictions]
    if missing:
        raise BoxlessError(
            f"predictions: {len(missing)} of {len(labels)} examples have none, the first is "
            f"{missing[0]}; expected a prediction for each example"
        )
    num_right = 0
    groups: dict[Hashable, bool] = defaultdict(lambda: True)
    for identifier, label in labels.items():
        is_right = predictions[identifier].lower() == label.lower()
        num_right += is_right
        groups[group_of(identifier)] &= is_right
    return ConsistencyScore(
        accuracy=num_right / len(labels),
        consistency=sum(groups.values()) / len(groups),
        num_examples=len(labels),
        num_groups=len(groups),
    )
