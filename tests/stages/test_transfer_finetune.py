"""Finetuning on "is the sentence true?", and evaluation as a whole."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pretrain_fixtures import read_lines, tiny_student, toy_samples, toy_tokenizer, write_objects
from safetensors.torch import load_file

from sharding.format.schema import Sample
from stages.transfer.config import EvaluateConfig, FinetuneConfig
from stages.transfer.evaluate import evaluate
from stages.transfer.finetune import finetune

RUN = FinetuneConfig(task="truth", num_steps=160, batch_size=8, lr=2e-3)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained student's folder."""
    folder = tmp_path_factory.mktemp("student")
    tiny_student().save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder


def _lights(split: str, count: int, seed: int) -> list[Sample]:
    """Bright and dark pictures with one sentence, "white" or "black", true or not."""
    random, samples = np.random.default_rng(seed), []
    for i in range(count):
        white, says_white = random.random(2) < 0.5
        data = io.BytesIO()
        level = int(random.integers(200, 256) if white else random.integers(0, 56))
        Image.new("RGB", (32, 32), (level,) * 3).save(data, "PNG")
        info = {
            "captions": ["white" if says_white else "black"],
            "width": 32,
            "height": 32,
            "truth": {"captions": [bool(white == says_white)]},
        }
        samples.append(
            Sample(key=f"light-{split}-{i}", image=data.getvalue(), extension="png", info=info)
        )
    return samples


def test_a_separable_task_is_learned_and_written_down(student: Path, tmp_path: Path) -> None:
    """Oracle: whether a grey picture is called by its name needs both eyes and words (neither
    alone tells), and is learned; predictions, scores and chance agree with each other."""
    train, heldout, out = _lights("train", 80, 0), _lights("heldout", 20, 1), tmp_path / "out"
    images = write_objects(tmp_path / "images", train + heldout)
    finetune(RUN, seed=0, images=images, student=student, out=out)
    score = json.loads((out / "scores.json").read_text())["truth_accuracy"]
    assert score["value"] >= 0.9 and (score["num"], score["num_train"]) == (20, 80)
    truths = [s.info["truth"]["captions"][0] for s in heldout]
    commoner = sum(s.info["truth"]["captions"][0] for s in train) > 40
    assert score["chance"] == pytest.approx(truths.count(commoner) / 20)
    lines = read_lines(out / "predictions.jsonl")
    assert [line["key"] for line in lines] == [s.key for s in heldout]
    assert [line["true"] for line in lines] == truths
    right = [(line["probability"] > 0.5) == line["true"] for line in lines]
    assert score["value"] == pytest.approx(sum(right) / 20)


def test_the_seed_decides_everything(student: Path, tmp_path: Path) -> None:
    """Oracle: bit-equal weights of two runs of one seed, and others of another."""
    images = write_objects(tmp_path / "i", _lights("train", 12, 0) + _lights("heldout", 4, 1))
    one, again, other = (
        _trained(replace(RUN, num_steps=3), seed, images, student, tmp_path / str(i))
        for i, seed in enumerate((0, 0, 1))
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["itm_head.pool.weight"], other["itm_head.pool.weight"])


def _trained(
    config: FinetuneConfig, seed: int, images: Path, student: Path, out: Path
) -> dict[str, torch.Tensor]:
    finetune(config, seed=seed, images=images, student=student, out=out)
    return load_file(out / "student" / "model.safetensors")


def test_sentences_of_unknown_truth_are_refused(student: Path, tmp_path: Path) -> None:
    """Oracle: a ValueError that says what is missing, before anything is written."""
    images = write_objects(tmp_path / "images", toy_samples(24, 6)[:12])
    with pytest.raises(ValueError, match="none of which says whether its sentence is true"):
        finetune(RUN, seed=0, images=images, student=student, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("settings", [{"task": "captions"}, {"num_steps": 0}, {"batch_size": 0}])
def test_settings_that_cannot_be(settings: dict) -> None:
    """Oracle: ValueError naming the field."""
    with pytest.raises(ValueError, match=next(iter(settings))):
        FinetuneConfig(**settings)


def _evaluate(folder: Path, student: Path, samples: list[Sample]) -> dict[str, dict[str, float]]:
    objects = write_objects(folder / "objects", samples)
    evaluate(
        EvaluateConfig(num_pictures=5, captions_per_picture=2, num_shown=2),
        samples=objects,
        teacher=folder / "teacher",
        student=student,
        out=folder / "out",
    )
    return json.loads((folder / "out" / "scores.json").read_text())


def test_every_score_stands_beside_chance(student: Path, tmp_path: Path) -> None:
    """Oracle: the held-out scenes only, as many as asked; chances by arithmetic; AP50 is what the
    teacher's folder says."""
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "scores.json").write_text('{"ap50": {"value": 0.75}}')
    scores = _evaluate(tmp_path, student, list(toy_samples(24, 6)[:12]))
    assert scores["teacher_ap50"] == {"value": 0.75, "chance": 0.0}
    assert scores["text_to_image_r1"]["chance"] == pytest.approx(1 / 5)
    assert scores["image_to_text_r1"]["chance"] == pytest.approx(2 / 10)
    assert scores["text_to_image_r5"]["value"] == 1
    phrases = [p for s in toy_samples(24, 6)[:5] for own in s.info["phrases"] for p in own]
    assert scores["phrase_grounding"]["num"] == len(phrases)
    assert all({"value", "chance"} <= entry.keys() for entry in scores.values())
    shown = json.loads((tmp_path / "out" / "examples.json").read_text())
    assert len(shown["retrieval"]) == len(shown["grounding"]) == 2


def test_scores_without_truth_are_left_out(student: Path, tmp_path: Path) -> None:
    """Oracle: no phrases known: no grounding; false sentences do not enter retrieval; no teacher
    of ours: no AP50."""
    samples = []
    for s in toy_samples(24, 6)[:5]:
        truth = {"captions": [False, True, False, False]}
        samples.append(replace(s, info={**s.info, "truth": truth}))
    scores = _evaluate(tmp_path, student, samples)
    assert "phrase_grounding" not in scores and "teacher_ap50" not in scores
    assert scores["text_to_image_r1"]["num"] == 5 and scores["object_label"]["num"] > 5


def test_a_split_without_pictures_is_refused(student: Path, tmp_path: Path) -> None:
    """Oracle: a ValueError that names the split."""
    with pytest.raises(ValueError, match="heldout"):
        _evaluate(tmp_path, student, list(toy_samples(24, 6)[6:]))
