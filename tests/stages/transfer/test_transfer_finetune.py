"""Finetuning on the sentences of NLVR in image shards, and evaluation as a whole."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pretrain_fixtures import (
    TINY,
    read_lines,
    tiny_student,
    toy_samples,
    toy_tokenizer,
    write_objects,
)
from safetensors.torch import load_file

from sharding.format.schema import Sample
from stages.student.processor import StudentProcessor
from stages.transfer.config import EvaluateConfig, FinetuneConfig
from stages.transfer.evaluation.evaluate import evaluate
from stages.transfer.finetuning.finetune_task import finetune_task

RUN = FinetuneConfig(
    task="nlvr",
    num_steps=160,
    micro_batch_size=8,
    micro_batches_per_step=1,
    lr=2e-3,
    validate_steps=160,
)


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """What every launcher sets; DeepSpeed asks for it."""
    monkeypatch.setenv("LOCAL_RANK", "0")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained student's folder."""
    folder = tmp_path_factory.mktemp("student")
    net = tiny_student()
    net.save_pretrained(folder)
    StudentProcessor.of(net, toy_tokenizer()).save_pretrained(folder)
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
            "identifier": f"{i}-0",
            "order": 0,
            "corpus_split": split,
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
    finetune_task(RUN, seed=0, images=images, student=student, out=out)
    score = json.loads((out / "scores.json").read_text())["nlvr_accuracy"]
    assert score["value"] >= 0.9 and score["num"] == 20
    truths = [s.info["truth"]["captions"][0] for s in heldout]
    assert score["chance"] == pytest.approx(max(truths.count(True), truths.count(False)) / 20)
    lines = read_lines(out / "predictions.jsonl")
    assert [line["id"] for line in lines] == [f"heldout.{i}-0-0" for i in range(20)]
    right = [(line["prediction"]["label"] == "True") == t for line, t in zip(lines, truths)]
    assert score["value"] == pytest.approx(sum(right) / 20)


def test_the_seed_decides_everything(student: Path, tmp_path: Path) -> None:
    """Oracle: bit-equal weights of two runs of one seed, and others of another."""
    images = write_objects(tmp_path / "i", _lights("train", 12, 0) + _lights("heldout", 4, 1))
    config = replace(RUN, num_steps=3)
    one, again, other = (
        _trained(config, seed, images, student, tmp_path / str(i))
        for i, seed in enumerate((0, 0, 1))
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    name = "embeddings.word_embeddings.weight"
    assert not torch.equal(one[name], other[name])


def _trained(
    config: FinetuneConfig, seed: int, images: Path, student: Path, out: Path
) -> dict[str, torch.Tensor]:
    finetune_task(config, seed=seed, images=images, student=student, out=out)
    return load_file(out / "student" / "model.safetensors")


def test_a_bank_of_other_weights_is_emptied(tmp_path: Path) -> None:
    """Oracle: the bank holds vectors of the student before it learned the task, so none is left."""
    net = tiny_student(replace(TINY, itc_size=6, itc_bank_size=3))
    assert net.query_bank is not None
    net.query_bank.fill(torch.ones(3, 6), torch.ones(3, 6))
    net.save_pretrained(tmp_path / "student")
    StudentProcessor.of(net, toy_tokenizer()).save_pretrained(tmp_path / "student")
    images = write_objects(tmp_path / "i", _lights("train", 8, 0) + _lights("heldout", 4, 1))
    taught = _trained(replace(RUN, num_steps=1), 0, images, tmp_path / "student", tmp_path / "out")
    for name in ("pictures", "texts"):
        assert not taught[f"contrastive_head.bank.{name}"].any()


def test_shards_without_truth_are_refused(student: Path, tmp_path: Path) -> None:
    """Oracle: a ValueError that says what is missing."""
    samples = [replace(s, info={**s.info, "truth": {}}) for s in toy_samples(24, 6)[:12]]
    images = write_objects(tmp_path / "images", samples)
    with pytest.raises(ValueError, match="image shards without the truth about their scenes"):
        finetune_task(RUN, seed=0, images=images, student=student, out=tmp_path / "out")


@pytest.mark.parametrize(
    "settings", [{"task": "captions"}, {"num_steps": 0}, {"max_texts": 0}, {"new_words": -1}]
)
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


@pytest.mark.parametrize("num_pairs", [0, 2])
def test_scores_by_a_bank_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], num_pairs: int
) -> None:
    """Oracle: the number of pairs that were put into the bank; an empty one is not named."""
    net = tiny_student(replace(TINY, itc_size=6, itc_bank_size=3))
    assert net.query_bank is not None
    rows = torch.eye(3, 6) * (torch.arange(3) < num_pairs)[:, None]
    net.query_bank.fill(rows, rows)
    net.save_pretrained(tmp_path / "student")
    StudentProcessor.of(net, toy_tokenizer()).save_pretrained(tmp_path / "student")
    _evaluate(tmp_path, tmp_path / "student", list(toy_samples(4, 4)))
    assert ("bank of 2 training pairs" in capsys.readouterr().out) == bool(num_pairs)


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
