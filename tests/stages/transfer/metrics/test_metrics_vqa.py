"""VQA accuracy against the official script's scores and an independent slow implementation."""

from __future__ import annotations

import random
import re

import pytest
from transfer_golden import golden_json

from stages.transfer.metrics.vqa_accuracy import question_accuracy, soft_targets, vqa_score
from stages.transfer.metrics.vqa_normalize import (
    clean,
    normalize,
    process_digits_and_articles,
    process_punctuation,
)


def _answers(results: list[dict]) -> dict[int, str]:
    return {result["question_id"]: result["answer"] for result in results}


def test_scores_are_the_official_ones() -> None:
    """Oracle: what vqaEval.py gives for 480 questions, with 12 digits: overall, each answer type,
    each question type, each question."""
    expected = golden_json("vqa_expected.json")
    score = vqa_score(
        golden_json("vqa_annotations.json")["annotations"],
        _answers(golden_json("vqa_results.json")),
    )
    accuracy = expected["accuracy_n12"]
    assert round(score.overall, 12) == accuracy["overall"]
    assert {k: round(v, 12) for k, v in score.per_answer_type.items()} == accuracy["perAnswerType"]
    assert {k: round(v, 12) for k, v in score.per_question_type.items()} == (
        accuracy["perQuestionType"]
    )
    per_question = {str(k): round(v, 12) for k, v in score.per_question.items()}
    assert per_question == expected["evalQA_n12"]
    assert round(score.overall, 2) == expected["accuracy"]["overall"]


def test_scoring_leaves_the_annotations_as_they_were() -> None:
    """Oracle: the same score the second time; the official script changes its input and gives
    another one."""
    annotations = golden_json("vqa_annotations.json")["annotations"]
    answers = _answers(golden_json("vqa_results.json"))
    assert vqa_score(annotations, answers) == vqa_score(annotations, answers)


def test_normalization_is_the_official_one() -> None:
    """Oracle: both steps of vqaEval.py on 553 texts, and on 15 where its Python 3 differs from
    2."""
    pairs = golden_json("vqa_pairs.json")
    for pair in pairs["pairs"]:
        assert process_punctuation(pair["raw"]) == pair["punct"]
        assert process_digits_and_articles(pair["punct"]) == pair["norm"]
        assert clean(pair["raw"]) == pair["cleaned"]
        assert normalize(pair["raw"]) == pair["cleaned_norm"]
    for pair in pairs["python_version_dependent"]:
        punct = process_punctuation(pair["raw"])
        assert (punct, process_digits_and_articles(punct)) == (
            pair["python3"]["punct"],
            pair["python3"]["norm"],
        )


@pytest.mark.parametrize("name", sorted(golden_json("vqa_edge.json")))
def test_edge_cases(name: str) -> None:
    """Oracle: the script's score on each small case; a ValueError of ours where it stops with an
    error of any kind."""
    case = golden_json("vqa_edge.json")[name]
    expected = case.get("expected_python3", case["expected"])
    annotations = case["annotations"]["annotations"]
    if "error" in expected:
        with pytest.raises(ValueError, match="answers|annotations"):
            results = case["results"]
            vqa_score(annotations, _answers(results) if isinstance(results, list) else results)
        return
    score = vqa_score(annotations, _answers(case["results"]))
    assert round(score.overall, 2) == expected["accuracy"]["overall"]
    assert {str(k): round(v, 2) for k, v in score.per_question.items()} == expected["evalQA"]


def test_targets_by_hand() -> None:
    """Oracle: on paper, by the number of humans who gave an answer after normalization."""
    said = ["Two", "2", "two.", "the dog", "dog", "cat", "CAT", "cat", "cat!", "a cat"]
    targets = soft_targets([{"answer": answer} for answer in said])
    assert targets == {"2": 0.9, "dog": 0.6, "cat": 1.0}


_PIECES = ["yes", "no", "two", "2", "a", "the", "none", "dont", "couldnt've", "wheres", "1,000", "3.5",
           "dog", "Dog", "end.", "...", "?", " ", "-", "o'clock", "\n", "\t", "tennis", "ten", "x" * 3,
           "Im", "somebody'd", ",", "'", "/", "é", ".5", "\u00a0", "[", "$", ":"]  # fmt: skip


def _slow_normalize(text: str) -> str:
    """The protocol once more, a character at a time."""
    has_comma = any(
        text[i - 1].isdecimal() and text[i] == "," and text[i + 1].isdecimal()
        for i in range(1, len(text) - 1)
    )
    out = ""
    for char in text:
        if char in set(';/[]"{}()=+\\_-><@`,?!'):
            beside = any(
                text[i] == char and (text[i - 1 : i] == " " and i > 0 or text[i + 1 : i + 2] == " ")
                for i in range(len(text))
            )
            out += "" if beside or has_comma else " "
        else:
            out += char
    kept, removed = "", 0
    for i, char in enumerate(out):
        if char == "." and not out[i + 1 : i + 2].isdecimal() and removed < 32:
            removed += 1
        else:
            kept += char
    words = []
    numbers = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
    ]
    for word in re.split(r"\s+", kept.lower()):
        word = "0" if word == "none" else str(numbers.index(word)) if word in numbers else word
        if word in ("", "a", "an", "the"):
            continue
        fixed = {"dont": "don't", "couldnt've": "couldn't've", "wheres": "where's"}
        words.append(fixed.get(word, "somebodyd" if word == "somebody'd" else word))
    return " ".join(words)


def _slow_accuracy(answer: str, human: list[str]) -> float:
    def first_step(text: str) -> str:
        return "".join(" " if char in "\n\t" else char for char in text).strip()

    answer, human = first_step(answer), [first_step(text) for text in human]
    if any(text != human[0] for text in human):
        answer, human = _slow_normalize(answer), [_slow_normalize(text) for text in human]
    total = 0.0
    for leave_out in range(len(human)):
        same = sum(human[i] == answer for i in range(len(human)) if i != leave_out)
        total += 1.0 if same >= 3 else same / 3
    return total / len(human)


def test_ten_thousand_random_answers() -> None:
    """Oracle: an implementation written from the protocol, a character and a human at a time, on
    texts made of what the steps treat specially."""
    rng = random.Random(0)

    def text() -> str:
        joints = ["", " ", " "]
        return "".join(rng.choice(_PIECES) + rng.choice(joints) for _ in range(rng.randint(1, 4)))

    for _ in range(10_000):
        pool = [text() for _ in range(rng.randint(1, 4))]
        human = [rng.choice(pool) for _ in range(10)]
        answer = rng.choice([rng.choice(pool), text(), normalize(rng.choice(pool))])
        records = [{"answer": a, "answer_id": i} for i, a in enumerate(human)]
        got = question_accuracy(answer, records)
        assert got == pytest.approx(_slow_accuracy(answer, human), abs=1e-12), (answer, human)
