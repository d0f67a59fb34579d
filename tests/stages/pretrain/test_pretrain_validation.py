"""Held-out losses and retrieval while pretraining runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretrain_fixtures import SHARD_SIZE, TINY, read_lines, toy_samples, write_objects

from sharding.format.schema import Sample
from stages.pretrain.config import PretrainConfig
from stages.pretrain.objectives.config import ItcConfig
from stages.pretrain.run import pretrain
from stages.pretrain.validation import recall_at_1
from stages.transfer.predictor import Predictor


def test_recall_at_1_by_hand() -> None:
    """Oracle: by eye. Picture 0 has texts 0 and 1, picture 1 text 2, picture 2 none. Picture 0
    finds its text 1; picture 1's best is text 0. Text 0 goes to picture 1, text 1 is right, text 2
    ties with picture 2, which counts against."""
    scores = torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.2, 0.5], [0.0, 0.0, 0.5]])
    found = recall_at_1(scores, torch.tensor([0, 0, 1]))
    assert found["picture_to_text_r1"] == 1 / 2
    assert found["text_to_picture_r1"] == pytest.approx(1 / 3)


def test_a_run_measures_held_out_pictures_and_keeps_the_best(tmp_path: Path) -> None:
    """Oracle: the recipe's steps, 2, 4 and the last, 5; every objective has a held-out loss; the
    best student is one of those steps' (average weights, which are not the last ones). Both
    students' banks hold their own vectors of the training pairs."""
    objects = tmp_path / "objects"
    samples = toy_samples(SHARD_SIZE, SHARD_SIZE)
    write_objects(objects, samples)
    config = PretrainConfig(
        num_steps=5,
        micro_batch_size=3,
        micro_batches_per_step=1,
        checkpoint_steps=5,
        log_steps=1,
        validate_steps=2,
        validate_pictures=5,
        average_samples=6,
        itc=ItcConfig(weight=1),
    )
    pretrain(
        config,
        student=replace(TINY, itc_size=8, itc_bank_size=SHARD_SIZE + 2),
        seed=0,
        objects=objects,
        out=tmp_path / "pretrain",
        student_out=tmp_path / "student",
    )
    lines = read_lines(tmp_path / "pretrain" / "metrics.jsonl")
    measured = [line for line in lines if "validation/loss" in line]
    assert [line["step"] for line in measured] == [2, 4, 5]
    for line in measured:
        for name in ("itc", "itm", "mlm", "omvm", "pra"):
            assert math.isfinite(line[f"validation/{name}/loss"]), name
        both = (line["validation/picture_to_text_r1"], line["validation/text_to_picture_r1"])
        assert line["validation/r1"] == pytest.approx(sum(both) / 2)
    pictures = [sample for sample in samples if "-train-" in sample.key]
    for folder in (tmp_path / "pretrain" / "best", tmp_path / "student"):
        _assert_bank_of(Predictor.load(folder), pictures)


@torch.no_grad()
def _assert_bank_of(predictor: Predictor, pictures: Sequence[Sample]) -> None:
    """The bank's first rows are this student's vectors of these pictures, each once, and of one of
    the picture's captions; the rest are empty."""
    bank = predictor.student.query_bank
    assert bank is not None
    rows, texts = bank.get_buffer("pictures"), bank.get_buffer("texts")
    assert not rows[len(pictures) :].any() and not texts[len(pictures) :].any()
    found = []
    for picture in pictures:
        vector = predictor.student.embed_pictures(predictor.encode_image([picture]))[0]
        row = int((rows - vector).norm(dim=1).argmin())
        torch.testing.assert_close(rows[row], vector, rtol=0, atol=1e-4)
        tokens, _ = predictor.read(picture.info["captions"])
        own = predictor.student.embed_texts(tokens)
        assert (own - texts[row]).norm(dim=1).min() < 1e-4
        found.append(row)
    assert sorted(found) == list(range(len(pictures)))
