"""ZeRO 0 to 3 and 16 bits under real DeepSpeed on two ranks: the same training, and its norms.

`make curves` compares longer curves and more kinds; here are a few cells of its table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from pretrain_fixtures import (
    TINY,
    random_batch,
    read_lines,
    tiny_student,
)
from pretrain_ranks import SHORT_RUN, Ranks, toy_ranks
from safetensors.torch import load_file

from stages.pretrain.config import PretrainConfig
from stages.student.network import Student
from stages.training.monitoring.gradient_norms import PARTS, GradientNorms, part_of

RUN = replace(SHORT_RUN, num_steps=4, micro_batches_per_step=4)
DONE = ["done", "done"]
CUT_ALL = {
    "zero_optimization": {
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": 1000,
    }
}
"""Left alone, ZeRO 3 keeps weights as small as these whole on every rank."""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Runs over 14 train scenes, with dropout and a frozen stage."""
    yield from toy_ranks(tmp_path_factory, replace(TINY, dropout=0.1, frozen_stages=1))


@pytest.fixture(scope="module")
def zero_3(tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    """RUN with every weight cut up."""
    path = tmp_path_factory.mktemp("settings") / "ds_config.json"
    path.write_text(json.dumps(CUT_ALL))
    return replace(RUN, zero_stage=3, ds_config=str(path))


@pytest.fixture(scope="module")
def undisturbed(
    ranks: Ranks, zero_3: PretrainConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """ZeRO 3 on two ranks."""
    root = tmp_path_factory.mktemp("undisturbed")
    assert ranks(zero_3, root, world_size=2) == DONE
    return root


def _weights(root: Path) -> dict[str, torch.Tensor]:
    return load_file(root / "student" / "model.safetensors")


def _assert_close_runs(root: Path, other: Path) -> None:
    """The same weights, losses and norms but for the order of sums."""
    mine, theirs = _weights(root), _weights(other)
    assert mine.keys() == theirs.keys()
    for name in mine:
        if "running_" not in name and not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=3e-5, msg=name)
    lines, others = (read_lines(r / "pretrain" / "metrics.jsonl") for r in (root, other))
    assert [line["step"] for line in lines] == [line["step"] for line in others]
    norms = ["grad_norm", *(f"grad_norm/{part}" for part in PARTS)]
    for line, other_line in zip(lines, others):
        assert line["lr_factor"] == other_line["lr_factor"]
        for name in ("loss", *norms):
            assert line[name] == pytest.approx(other_line[name], rel=1e-4), (line["step"], name)
        squares = sum(line[name] ** 2 for name in norms[1:])
        assert squares == pytest.approx(line["grad_norm"] ** 2, rel=1e-5)


@pytest.mark.parametrize("stage", [0, 2])
def test_zero_changes_nothing(ranks: Ranks, undisturbed: Path, tmp_path: Path, stage: int) -> None:
    """Oracle: ZeRO 3 with all weights cut up. Weights, losses and the gradient's norms are those of
    the other stages, over two turns a step, up to rounding."""
    assert ranks(replace(RUN, zero_stage=stage), tmp_path, world_size=2) == DONE
    _assert_close_runs(tmp_path, undisturbed)


def test_norms_without_zero_are_those_of_pytorch() -> None:
    """Oracle: torch.nn.utils.get_total_norm over the parameters picked by name; those without a
    gradient add nothing."""
    student = tiny_student()
    random = torch.Generator().manual_seed(3)
    for number, (_, parameter) in enumerate(student.named_parameters()):
        if number % 3:
            parameter.grad = torch.randn(parameter.shape, generator=random)
    engine = SimpleNamespace(
        module=torch.nn.ModuleDict({"student": student}),
        optimizer=None,
        device="cpu",
        fp16_enabled=lambda: False,
        torch_autocast_enabled=lambda: False,
        zero_offload_optimizer=lambda: None,
        zero_optimization=lambda: False,
        zero_optimization_stage=lambda: 0,
    )
    heads = ("mlm_head", "itm_head", "object_head", "align_head")
    starts = {
        "cnn": ("grid.resnet",),
        "transformer": ("embeddings", "fusion"),
        "heads": heads,
        "cells": ("grid.project", "cell_norm", "visual_mask_embedding"),
        "": ("",),
    }
    gradients = GradientNorms(engine, engine.module)
    norms = gradients.norms(gradients.squares())
    assert len(norms) == len(starts)
    for part, start in starts.items():
        gradients = [p.grad for n, p in student.named_parameters() if n.startswith(start)]
        expected = torch.nn.utils.get_total_norm([g for g in gradients if g is not None]).item()
        assert norms[f"grad_norm/{part}".rstrip("/")] == pytest.approx(expected, rel=1e-5), part


def test_every_parameter_has_its_part() -> None:
    """Oracle: names of a whole student, and every part has some."""
    parts = {name: part_of(name) for name, _ in tiny_student().named_parameters()}
    assert set(parts.values()) == set(PARTS)
    assert parts["grid.resnet.embedder.embedder.convolution.weight"] == "cnn"
    assert (
        parts["grid.project.weight"]
        == parts["visual_mask_embedding"]
        == parts["cell_norm.bias"]
        == "cells"
    )
    assert parts["embeddings.word_embeddings.weight"] == "transformer"
    assert parts["mlm_head.bias"] == parts["object_head.label.weight"] == "heads"


def test_the_student_of_zero_3_is_whole(undisturbed: Path) -> None:
    """Oracle: a student of as many weights, of their shapes; it loads, and sees and reads."""
    saved = _weights(undisturbed)
    for name, value in tiny_student().state_dict().items():
        if "embeddings.word" not in name and "mlm_head.bias" not in name:
            assert saved[name].shape == value.shape and saved[name].dtype == value.dtype, name
    student = Student.from_pretrained(undisturbed / "student").eval()
    batch = random_batch(0)
    with torch.no_grad():
        cells = student.encode_image(batch.pixels, batch.sizes_px)
        hidden = student.fuse(cells, picture=batch.picture, input_ids=batch.tokens)
    assert hidden.text.isfinite().all()


def test_zero_3_killed_and_started_again(
    ranks: Ranks, zero_3: PretrainConfig, undisturbed: Path, tmp_path: Path
) -> None:
    """In a folder whose name DeepSpeed's glob takes for a pattern. Oracle: the undisturbed run, bit
    for bit."""
    root = tmp_path / "lr=[1,2] *?"
    root.mkdir()
    assert ranks(zero_3, root, world_size=2, spoil="kill", step=4)[1] == "signal 9"
    assert ranks(zero_3, root, world_size=2) == DONE
    mine, theirs = _weights(root), _weights(undisturbed)
    assert not [name for name in mine if not torch.equal(mine[name], theirs[name])]


@pytest.mark.parametrize("worlds", [(2, 1), (1, 3)])
def test_zero_3_goes_on_on_another_number_of_ranks(
    ranks: Ranks,
    zero_3: PretrainConfig,
    undisturbed: Path,
    tmp_path: Path,
    worlds: tuple[int, int],
) -> None:
    """Oracle: two ranks undisturbed. Weights, optimizer states, frozen weights and position go
    along, or the last steps would be others."""
    first, second = worlds
    outcomes = ranks(zero_3, tmp_path, world_size=first, spoil="kill", step=4)
    assert outcomes[-1] == "signal 9"
    assert ranks(zero_3, tmp_path, world_size=second) == ["done"] * second
    _assert_close_runs(tmp_path, undisturbed)


def test_checkpointing_changes_nothing_under_zero_3(
    ranks: Ranks, zero_3: PretrainConfig, undisturbed: Path, tmp_path: Path
) -> None:
    """Oracle: ZeRO 3 without it, bit for bit, statistics and dropout too."""
    config = replace(zero_3, checkpoint_activations=("cnn", "transformer"))
    assert ranks(config, tmp_path, world_size=2) == DONE
    mine, theirs = _weights(tmp_path), _weights(undisturbed)
    assert not [name for name in mine if not torch.equal(mine[name], theirs[name])]


@pytest.mark.parametrize("stage", [0, 3])
def test_bf16_keeps_statistics_and_can_be_saved_whole(
    ranks: Ranks, zero_3: PretrainConfig, undisturbed: Path, tmp_path: Path, stage: int
) -> None:
    """Oracle: the losses of fp32 within 1 %; the saved weights are the optimizer's float32 ones,
    values that bfloat16 has not, and so are BatchNorm's statistics."""
    config = replace(
        zero_3 if stage else RUN, zero_stage=stage, precision="bf16", save_precision="fp32"
    )
    assert ranks(config, tmp_path, world_size=2) == DONE
    frozen = ("grid.resnet.embedder", "grid.resnet.encoder.stages.0")
    for name, value in _weights(tmp_path).items():
        if value.is_floating_point() and value.numel() > 8 and not name.startswith(frozen):
            assert value.dtype == torch.float32
            whole = not torch.equal(value, value.bfloat16().float())
            assert whole or not value.any() or name.endswith("token_type_embeddings.weight"), name
    lines, others = (read_lines(r / "pretrain" / "metrics.jsonl") for r in (tmp_path, undisturbed))
    for line, other_line in zip(lines, others):
        assert line["loss"] == pytest.approx(other_line["loss"], rel=0.01)


@pytest.mark.parametrize(
    ("precision", "stage"), [("autocast-bf16", 1), ("autocast-fp16", 1), ("autocast-fp16", 3)]
)
def test_autocast_trains_float32_weights(
    ranks: Ranks,
    zero_3: PretrainConfig,
    undisturbed: Path,
    tmp_path: Path,
    precision: str,
    stage: int,
) -> None:
    """Oracle: the losses and the gradient's norms of fp32 within 1 % and 5 %, no loss equal to the
    last digit; float32 weights."""
    config = replace(zero_3 if stage == 3 else RUN, zero_stage=stage, precision=precision)
    if precision == "autocast-fp16":  # from a scale that nothing overflows at
        cut = CUT_ALL if stage == 3 else {}
        config = replace(config, ds_config=_scale_of(tmp_path, 8, **cut))
    assert ranks(config, tmp_path, world_size=2) == DONE
    assert {w.dtype for w in _weights(tmp_path).values() if w.is_floating_point()} == {
        torch.float32
    }
    lines, others = (read_lines(r / "pretrain" / "metrics.jsonl") for r in (tmp_path, undisturbed))
    for line, other_line in zip(lines, others):
        assert line["loss"] == pytest.approx(other_line["loss"], rel=0.01)
        assert line["grad_norm"] == pytest.approx(other_line["grad_norm"], rel=0.05)
        assert line["loss"] != other_line["loss"]


@pytest.mark.parametrize(
    "precision",
    [
        "autocast-fp16",
        pytest.param(
            "fp16",
            marks=pytest.mark.skipif(
                not get_accelerator().is_fp16_supported(), reason="this processor has no fp16"
            ),
        ),
    ],
)
def test_steps_that_overflow_count_and_change_nothing(
    ranks: Ranks, tmp_path: Path, precision: str
) -> None:
    """Oracle: DeepSpeed's rule. From a scale of 2^32 every gradient overflows: no step is taken,
    none counts as a loss that is not finite, each halves the scale; the samples count as seen and
    the rate is that of the step, on all lines; weights are those of the start."""
    config = replace(RUN, precision=precision, ds_config=_scale_of(tmp_path, 32), num_steps=2)
    assert ranks(config, tmp_path / "two", world_size=2) == DONE
    lines = read_lines(tmp_path / "two" / "pretrain" / "metrics.jsonl")
    assert [line["overflow_steps"] for line in lines] == [1, 2]
    assert [line["loss_scale"] for line in lines] == [2.0**31, 2.0**30]
    assert [line["pictures"] for line in lines] == [12, 24]
    assert lines[0]["lr_factor"] > lines[1]["lr_factor"] > 0
    assert ranks(replace(config, num_steps=1), tmp_path / "one", world_size=2) == DONE
    one, two = _weights(tmp_path / "one"), _weights(tmp_path / "two")
    for name in one:
        if "running_" not in name and not name.endswith("num_batches_tracked"):
            assert torch.equal(one[name], two[name]), name


def test_a_scale_outlives_a_stop_on_another_number_of_ranks(ranks: Ranks, tmp_path: Path) -> None:
    """Every step overflows from a scale of 2^40. Oracle: it is halved once a step over all of
    them, whatever ranks take them."""
    config = replace(RUN, precision="autocast-fp16", ds_config=_scale_of(tmp_path, 40))
    assert ranks(config, tmp_path, world_size=2, spoil="kill", step=4)[1] == "signal 9"
    assert ranks(config, tmp_path, world_size=1) == ["done"]
    lines = read_lines(tmp_path / "pretrain" / "metrics.jsonl")
    assert [line["loss_scale"] for line in lines] == [2.0**power for power in (39, 38, 37, 36)]


def test_gradients_that_no_scale_makes_finite_stop_the_run(ranks: Ranks, tmp_path: Path) -> None:
    """Every gradient from step 2 on is not a number. Oracle: from a scale of 4 two steps lower it
    to 1 and count as overflows; the next ones count as those of any precision do, and the third in
    a row stops all ranks, with the keys."""
    config = replace(RUN, precision="autocast-fp16", num_steps=20, ds_config=_scale_of(tmp_path, 2))
    outcomes = ranks(config, tmp_path, world_size=2, spoil="gradients", step=2)
    for outcome in outcomes:
        assert outcome.startswith("DivergenceError: step 6: for 3 steps in a row"), outcome
    lines = read_lines(tmp_path / "pretrain" / "metrics.jsonl")
    assert [line["loss_scale"] for line in lines] == [4, 2, 1, 1, 1]
    assert [line["overflow_steps"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["nonfinite_steps"] for line in lines] == [0, 0, 0, 1, 2]
    assert "step 4: a gradient is not finite" in (tmp_path / "pretrain/notices.log").read_text()


def _scale_of(folder: Path, power: int, **others: Any) -> str:
    """A ds_config.json whose losses are at first multiplied by 2 ** `power`, and by half as much
    after each step that overflows, and with `others` of DeepSpeed's settings."""
    path = folder / "ds_config.json"
    fp16 = {"initial_scale_power": power, "hysteresis": 1}
    path.write_text(json.dumps({"fp16": fp16, **others}))
    return str(path)
