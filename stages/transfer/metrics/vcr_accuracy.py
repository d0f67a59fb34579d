"""VCR's three accuracies and its test file (rowanz/r2c, `eval_q2ar.py`,
`eval_for_leaderboard.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from boxless.errors import BoxlessError

NUM_CHOICES = 4
HEADER = (
    "annot_id",
    *(f"answer_{i}" for i in range(NUM_CHOICES)),
    *(
        f"rationale_conditioned_on_a{answer}_{i}"
        for answer in range(NUM_CHOICES)
        for i in range(NUM_CHOICES)
    ),
)


@dataclass(frozen=True, kw_only=True)
class VcrScore:
    """Shares, 0 to 1: the answer, the rationale given the right answer, and both on one item."""

    answer: float
    rationale: float
    joint: float
    num: int


def vcr_score(
    answer_scores: np.ndarray,
    rationale_scores: np.ndarray,
    answer_label: np.ndarray,
    rationale_label: np.ndarray,
) -> VcrScore:
    """answer_scores [N, 4]; rationale_scores [N, 4], given the RIGHT answer; labels [N]. The first
    of equal scores counts. Raises ValueError on other shapes and on scores that are not numbers."""
    num = len(answer_label)
    for name, array, shape in (
        ("answer_scores", answer_scores, (num, NUM_CHOICES)),
        ("rationale_scores", rationale_scores, (num, NUM_CHOICES)),
        ("rationale_label", rationale_label, (num,)),
    ):
        if array.shape != shape or not num:
            raise BoxlessError(
                f"{name}: got shape {array.shape}, expected {shape}, one row or more"
            )
        if np.isnan(array).any():
            raise BoxlessError(
                f"{name}: row {int(np.isnan(array).any(-1).argmax())} is not a number"
            )
    answer_hits = answer_scores.argmax(axis=1) == answer_label
    rationale_hits = rationale_scores.argmax(axis=1) == rationale_label
    return VcrScore(
        answer=float(answer_hits.mean()),
        rationale=float(rationale_hits.mean()),
        joint=float((answer_hits & rationale_hits).mean()),
        num=num,
    )


def format_submission(annot_ids: Sequence[str], scores: np.ndarray) -> str:
    """The test set's CSV from scores or probabilities [N, 5, 4]: answers, then rationales given
    answer 0 to 3. Raises ValueError on other shapes."""
    if scores.shape != (len(annot_ids), 1 + NUM_CHOICES, NUM_CHOICES):
        raise BoxlessError(
            f"scores: got shape {scores.shape}, expected {(len(annot_ids), 5, NUM_CHOICES)}"
        )
    lines = [",".join(HEADER)]
    for annot_id, row in zip(annot_ids, scores.reshape(len(annot_ids), -1).tolist()):
        lines.append(",".join((annot_id, *map(repr, row))))
    return "\n".join(lines) + "\n"
