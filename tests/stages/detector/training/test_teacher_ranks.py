"""A teacher's training on several ranks, and in half precision."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from teach_ranks import SEED, TeachRanks
from teacher_scenes import TEACH, write_scenes

from stages.detector.training import train as train_file
from stages.detector.training.loss_scaling import SOUND_STEPS_TO_DOUBLE, START, LossScale
from stages.detector.training.train import teach


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TeachRanks]:
    """Trainings over 8 scenes, of which a batch of 3 leaves 2 for the last step of an epoch."""
    images = tmp_path_factory.mktemp("teach") / "images"
    started = TeachRanks(write_scenes(images, num_train=8, num_heldout=2))
    yield started
    started.close()


def lines_of(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line if name != "seconds"} for line in lines]


@pytest.mark.parametrize("batch", [3, 1])
def test_two_ranks_do_what_one_does(ranks: TeachRanks, tmp_path: Path, batch: int) -> None:
    """Oracle: one rank. The same losses, step for step, and the same weights, but for the order of
    sums; batches of 3 are shared out unevenly, of 1 leave a rank without a picture."""
    config = dataclasses.replace(TEACH, micro_batch_size=batch)
    teach(config, seed=SEED, images=ranks.images, out=tmp_path / "one")
    assert ranks(tmp_path / "two", 2, micro_batch_size=batch) == [0, 0]
    one, two = lines_of(tmp_path / "one"), lines_of(tmp_path / "two")
    assert [line["step"] for line in two] == [1, 2, 3, 4, 5, 6]
    for own, other in zip(one, two, strict=True):
        assert own == pytest.approx(other, rel=1e-3, abs=1e-5)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=1e-3, atol=1e-5, msg=name)


def test_killed_on_two_ranks_it_goes_on(ranks: TeachRanks, tmp_path: Path) -> None:
    """Oracle: two ranks that nobody killed; weights byte for byte, every metrics line once. One is
    killed between two checkpoints, the other then finds it gone."""
    assert ranks(tmp_path / "whole", 2) == [0, 0]
    assert ranks(tmp_path / "killed", 2, killed_step=3) == [1, -9]
    assert not (tmp_path / "killed" / "scores.json").exists()
    assert ranks(tmp_path / "killed", 2) == [0, 0]
    for name in ("model.safetensors", "config.json"):
        whole, killed = ((tmp_path / run / name).read_bytes() for run in ("whole", "killed"))
        assert whole == killed, name
    assert lines_of(tmp_path / "killed") == lines_of(tmp_path / "whole")


class Stop(BaseException):
    """As a kill does it: nothing in the code under test catches this."""


def test_fp16_trains_and_goes_on(
    ranks: TeachRanks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the first loss of float32, to the rounding of 16 bits; stopped with a loss scale that
    has moved, it ends with the weights of a run that nobody stopped."""
    monkeypatch.setattr("stages.detector.training.loss_scaling.SOUND_STEPS_TO_DOUBLE", 2)
    config = dataclasses.replace(TEACH, precision="fp16")
    for precision in ("fp32", "fp16"):
        own = dataclasses.replace(TEACH, precision=precision)
        teach(own, seed=SEED, images=ranks.images, out=tmp_path / precision)
    full, half = lines_of(tmp_path / "fp32"), lines_of(tmp_path / "fp16")
    assert half[0]["loss"] == pytest.approx(full[0]["loss"], rel=0.02)
    take_step, stops, scales = train_file.take_step, [3], []

    def step_or_stop(*args: Any) -> dict[str, float]:
        scales.append(args[-2].factor)
        if stops and args[-1] == stops[0]:
            stops.pop()
            raise Stop
        return take_step(*args)

    monkeypatch.setattr(train_file, "take_step", step_or_stop)
    with pytest.raises(Stop):
        teach(config, seed=SEED, images=ranks.images, out=tmp_path / "stopped")
    teach(config, seed=SEED, images=ranks.images, out=tmp_path / "stopped")
    assert len(set(scales)) > 1, "the scale moved"
    whole, stopped = (tmp_path / run / "model.safetensors" for run in ("fp16", "stopped"))
    assert whole.read_bytes() == stopped.read_bytes()


def test_the_loss_scale_by_hand() -> None:
    """Oracle: torch.amp.GradScaler's rule, counted by hand."""
    scale = LossScale(factor=START)
    for _ in range(SOUND_STEPS_TO_DOUBLE - 1):
        scale.note(True)
    scale.note(False)
    assert (scale.factor, scale.sound_steps) == (START / 2, 0)
    for _ in range(SOUND_STEPS_TO_DOUBLE):
        scale.note(True)
    assert (scale.factor, scale.sound_steps) == (START, 0)
