"""Our scores beside the official evaluators' on 10,000 random predictions a task.

The numbers were printed by the official code on the predictions of `random_predictions`:
GT-Vision-Lab/VQA a013f00 (`vqaEval.py`, 12 digits, its print statements made functions),
lil-lab/nlvr 1892484 (`nlvr2/eval/metrics.py`, `nlvr/metrics_images.py`), rowanz/r2c 77813d9
(`eval_q2ar.py`, three digits), salesforce/ALBEF b9727e4 (`itm_eval` of Retrieval.py, `evaluate` of
VE.py, four digits).
"""

from __future__ import annotations

import numpy as np
import pytest
import random_predictions
import torch

from stages.transfer.metrics.classification import accuracy_score, first_best
from stages.transfer.metrics.consistency import nlvr2_score, nlvr_score
from stages.transfer.metrics.retrieval_recall import recalls
from stages.transfer.metrics.vcr_accuracy import vcr_score
from stages.transfer.metrics.vqa_accuracy import vqa_score


def test_vqa() -> None:
    """Oracle: vqaEval.py, to 12 digits."""
    found = vqa_score(*random_predictions.vqa())
    assert found.overall == pytest.approx(60.136000000001, abs=2e-12)
    assert found.per_answer_type == pytest.approx(
        {"yes/no": 59.161622276029, "other": 60.448833034111, "number": 60.784138342278}, abs=2e-12
    )
    assert found.per_question_type == pytest.approx(
        {"none of the above": 60.518341307815, "is the": 59.100806451613, "what is": 59.284872298625,
         "how many": 61.665991082286}, abs=2e-12
    )  # fmt: skip


def test_nlvr2() -> None:
    """Oracle: metrics.py, all digits that it prints."""
    found = nlvr2_score(*random_predictions.nlvr2())
    assert (found.accuracy, found.consistency) == (0.8917, 0.5595)


def test_nlvr() -> None:
    """Oracle: metrics_images.py, all digits that it prints."""
    found = nlvr_score(*random_predictions.nlvr())
    assert (found.accuracy, found.consistency) == (0.8912259615384616, 0.0625)


def test_vcr() -> None:
    """Oracle: eval_q2ar.py, the three digits that it prints; a third of the rows have ties."""
    found = vcr_score(*[np.array(part) for part in random_predictions.vcr()])
    shown = [f"{value:.3f}" for value in (found.answer, found.rationale, found.joint)]
    assert shown == ["0.250", "0.252", "0.064"]


def test_retrieval() -> None:
    """Oracle: itm_eval."""
    scores, picture_of = random_predictions.retrieval()
    found = recalls(torch.tensor(scores), torch.tensor(picture_of))
    official = {
        "image_to_text_r1": 90.0,
        "image_to_text_r5": 95.0,
        "image_to_text_r10": 95.0,
        "text_to_image_r1": 30.0,
        "text_to_image_r5": 38.4,
        "text_to_image_r10": 46.0,
    }
    for name, value in official.items():
        assert 100 * found[name]["value"] == pytest.approx(value, abs=1e-10), name


def test_snli_ve() -> None:
    """Oracle: evaluate, the four digits that it prints (a mean over batches of 64 by their
    size)."""
    labels, scores = random_predictions.snli_ve()
    names = ("contradiction", "neutral", "entailment")
    said = {n: names[first_best(row)] for n, row in enumerate(scores)}
    assert f"{accuracy_score(dict(enumerate(labels)), said).accuracy:.4f}" == "0.5662"
