"""Scores of NLVR2, NLVR, VCR and SNLI-VE against those of the official scripts."""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
import pytest
from transfer_golden import GOLDEN, golden_json, golden_lines

from stages.transfer.metrics.classification import accuracy_score, first_best
from stages.transfer.metrics.consistency import (
    format_predictions,
    nlvr2_score,
    nlvr_identifier,
    nlvr_score,
    parse_predictions,
)
from stages.transfer.metrics.vcr_accuracy import HEADER, format_submission, vcr_score


@pytest.mark.parametrize("name", sorted(golden_json("nlvr2_expected.json")["cases"]))
def test_nlvr2_files(name: str) -> None:
    """Oracle: NLVR2's metrics.py on the same prediction file; a ValueError of ours where it prints
    no score or stops."""
    case = golden_json("nlvr2_expected.json")["cases"][name]
    labels = {e["identifier"]: e["label"] for e in golden_lines("nlvr2_examples.jsonl")}
    if "values" not in case:
        with pytest.raises(ValueError, match="predictions|line"):
            nlvr2_score(labels, parse_predictions(case["predictions_csv"]))
        return
    score = nlvr2_score(labels, parse_predictions(case["predictions_csv"]))
    assert score.accuracy == case["values"]["accuracy"]
    assert score.consistency == case["values"]["consistency"]
    again = parse_predictions(format_predictions(parse_predictions(case["predictions_csv"])))
    assert nlvr2_score(labels, again) == score


@pytest.mark.parametrize("part", ["images", "structured"])
def test_nlvr_files(part: str) -> None:
    """Oracle: NLVR's metrics_images.py and metrics_structured_rep.py, as above."""
    examples = golden_lines("nlvr_examples.jsonl")
    labels = {e["identifier"]: e["label"] for e in examples}
    if part == "images":
        labels = {f"{key}-{order}": label for key, label in labels.items() for order in range(6)}
    for name, case in golden_json("nlvr_expected.json")[part].items():

        def read(text: str) -> dict[str, str]:
            found = parse_predictions(text)
            return {nlvr_identifier(k) if part == "images" else k: v for k, v in found.items()}

        if "values" not in case:
            with pytest.raises(ValueError, match="predictions|line"):
                nlvr_score(labels, read(case["predictions_csv"]))
            continue
        score = nlvr_score(labels, read(case["predictions_csv"]))
        assert score.accuracy == case["values"]["precision"], name
        assert score.consistency == case["values"]["consistency"], name


def test_ten_thousand_random_statements() -> None:
    """Oracle: sets of wrong groups, counted the other way round."""
    rng = random.Random(1)
    labels, said, wrong = {}, {}, set()
    groups = defaultdict(int)
    num_wrong = 0
    for number in range(10_000):
        split, set_, pair, sentence = "dev", number // 8, number % 4, number // 4 % 2
        key = f"{split}-{set_}-{pair}-{sentence}"
        labels[key] = rng.choice(["True", "False"])
        said[key] = rng.choice(["true", "FALSE", labels[key], labels[key]])
        groups[(set_, sentence)] += 1
        if said[key].casefold() != labels[key].casefold():
            wrong.add((set_, sentence))
            num_wrong += 1
    score = nlvr2_score(labels, said)
    assert score.accuracy == pytest.approx(1 - num_wrong / 10_000)
    assert score.consistency == pytest.approx(1 - len(wrong) / len(groups))


def test_vcr_scores_are_the_official_ones() -> None:
    """Oracle: r2c's eval_q2ar.py, hits and accuracies, on 200 items with ties."""
    with np.load(GOLDEN / "vcr.npz", allow_pickle=False) as arrays:
        score = vcr_score(
            arrays["answer_preds"],
            arrays["rationale_preds"],
            arrays["answer_label"],
            arrays["rationale_label"],
        )
    expected = golden_json("vcr_expected.json")["r2c"]
    assert (score.answer, score.rationale, score.joint, score.num) == (
        expected["answer_acc"],
        expected["rationale_acc"],
        expected["joint_acc"],
        expected["n"],
    )


def test_vcr_test_file() -> None:
    """Oracle: the CSV that r2c writes: the same columns, rows and numbers."""
    lines = (GOLDEN / "vcr_submission_r2c.csv").read_text().splitlines()
    assert ",".join(HEADER) == lines[0] == golden_json("vcr_expected.json")["submission_header"]
    rows = {line.split(",")[0]: list(map(float, line.split(",")[1:])) for line in lines[1:]}
    with np.load(GOLDEN / "vcr.npz", allow_pickle=False) as arrays:
        ids, scores = arrays["annot_id"].tolist(), arrays["scores"]
    at = [ids.index(key) for key in rows]
    ours = format_submission(list(rows), scores[at]).splitlines()
    assert ours[0] == lines[0] and [line.split(",")[0] for line in ours[1:]] == list(rows)
    got = np.array([list(map(float, line.split(",")[1:])) for line in ours[1:]])
    assert np.abs(got - np.array(list(rows.values()))).max() < 1e-6


def test_vcr_against_a_loop() -> None:
    """Oracle: plain Python over 10,000 items of coarse scores that tie."""
    rng = np.random.default_rng(2)
    answers, rationales = rng.integers(0, 4, (2, 10_000, 4)).astype(float)
    labels = rng.integers(0, 4, (2, 10_000))
    hits = [0, 0, 0]
    for a, r, la, lr in zip(answers.tolist(), rationales.tolist(), *labels.tolist()):
        right = a.index(max(a)) == la, r.index(max(r)) == lr
        hits = [hits[0] + right[0], hits[1] + right[1], hits[2] + all(right)]
    score = vcr_score(answers, rationales, *labels)
    assert [score.answer, score.rationale, score.joint] == [n / 10_000 for n in hits]


def test_snli_ve_accuracy_under_each_label_order() -> None:
    """Oracle: arg-max accuracies of six code bases, whose orders of the labels decide ties."""
    expected = golden_json("snli_ve_expected.json")["expected"]
    with np.load(GOLDEN / "snli_ve.npz", allow_pickle=False) as arrays:
        names = arrays["column_names"].tolist()
        logits, gold = arrays["logits"], arrays["gold"].tolist()
        ids = arrays["pair_id"].tolist()
    labels = {key: names[row] for key, row in zip(ids, gold)}
    for code, order in golden_json("snli_ve_expected.json")["label_maps"].items():
        columns = sorted(order, key=order.get)
        said = {
            key: columns[first_best([float(row[names.index(label)]) for label in columns])]
            for key, row in zip(ids, logits)
        }
        assert accuracy_score(labels, said).accuracy == expected["argmax_by_label_map"][code]


def test_missing_predictions_are_named() -> None:
    """Oracle: ValueError with the id."""
    with pytest.raises(ValueError, match="'b'"):
        accuracy_score({"a": "x", "b": "y"}, {"a": "x"})
