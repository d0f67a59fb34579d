"""VQA accuracy as the official script computes it (GT-Vision-Lab/VQA, `vqaEval.py`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boxless.errors import BoxlessError
from stages.transfer.metrics.vqa_normalize import (
    clean,
    process_digits_and_articles,
    process_punctuation,
)

MATCHES_FOR_FULL_SCORE = 3


@dataclass(frozen=True, kw_only=True)
class VqaScore:
    """Accuracies in percent, not rounded (the script prints two digits)."""

    overall: float
    per_answer_type: dict[str, float]
    per_question_type: dict[str, float]
    per_question: dict[int, float]


def question_accuracy(answer: str, human_answers: Sequence[Mapping[str, Any]]) -> float:
    """Accuracy of one answer, 0 to 1: for each human, min(1, matches among the others / 3),
    averaged.

    `human_answers`: the annotation's records, with "answer". Others are the records that differ
    from the human's; records without ids of their own that say the same thus leave together.
    Neither side is normalized where all humans say the same.
    """
    records = [{**record, "answer": clean(record["answer"])} for record in human_answers]
    answer = clean(answer)
    if len({record["answer"] for record in records}) > 1:
        for record in records:
            record["answer"] = _normalized(record["answer"])
        answer = _normalized(answer)
    shares = []
    for record in records:
        matches = sum(other["answer"] == answer for other in records if other != record)
        shares.append(min(1.0, matches / MATCHES_FOR_FULL_SCORE))
    return sum(shares) / len(shares)


def vqa_score(annotations: Iterable[Mapping[str, Any]], answers: Mapping[int, str]) -> VqaScore:
    """Scores of predicted answers by question id.

    Raises ValueError where the ids are not exactly those of the annotations, where an answer is no
    text, and without annotations.
    """
    annotations = list(annotations)
    _check_ids([annotation["question_id"] for annotation in annotations], answers)
    accuracies: list[float] = []
    per_question: dict[int, float] = {}
    by_answer_type: dict[str, list[float]] = defaultdict(list)
    by_question_type: dict[str, list[float]] = defaultdict(list)
    for annotation in annotations:
        question_id = annotation["question_id"]
        accuracy = question_accuracy(answers[question_id], annotation["answers"])
        accuracies.append(accuracy)
        per_question[question_id] = 100 * accuracy
        by_answer_type[annotation["answer_type"]].append(accuracy)
        by_question_type[annotation["question_type"]].append(accuracy)
    return VqaScore(
        overall=_percent(accuracies),
        per_answer_type={kind: _percent(values) for kind, values in by_answer_type.items()},
        per_question_type={kind: _percent(values) for kind, values in by_question_type.items()},
        per_question=per_question,
    )


def soft_targets(human_answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Each distinct normalized human answer with its score as a training target: 0.3, 0.6, 0.9 or
    1.0 for 1, 2, 3, or 4 and more humans who gave it."""
    counts: dict[str, int] = defaultdict(int)
    for record in human_answers:
        counts[_normalized(clean(record["answer"]))] += 1
    return {answer: min(1.0, round(0.3 * count, 1)) for answer, count in counts.items()}


def _normalized(answer: str) -> str:
    return process_digits_and_articles(process_punctuation(answer))


def _percent(values: Sequence[float]) -> float:
    return 100 * sum(values) / len(values)


def _check_ids(expected: Sequence[int], answers: Mapping[int, str]) -> None:
    if not expected:
        raise BoxlessError("annotations: got none, expected at least one question")
    missing, extra = set(expected) - set(answers), set(answers) - set(expected)
    if missing or extra:
        raise BoxlessError(
            f"answers: {len(missing)} questions have none (the first: {_first(missing)}) and "
            f"{len(extra)} ids are of no question (the first: {_first(extra)}); expected one answer "
            "for each annotated question, by its id as a number"
        )
    for question_id, answer in answers.items():
        if not isinstance(answer, str):
            raise BoxlessError(f"answers: question {question_id} has {answer!r}, expected a text")


def _first(ids: set[Any]) -> Any:
    return min(ids, key=repr) if ids else "none"
