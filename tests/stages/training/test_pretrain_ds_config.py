"""DeepSpeed's settings: from the recipe, and from a file of the user's own, checked against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.recipe.recipe import load_recipe
from pipeline.runner.stages.external_inputs import external_inputs
from pipeline.runner.stages.stage_graph import stages_of
from stages.pretrain.config import PretrainConfig
from stages.pretrain.run import check_batch_norm
from stages.student.config import StudentConfig
from stages.student.vision.neck_config import SohoNeckConfig
from stages.training import engine
from stages.training.ds_config import engine_settings

RECIPE: dict[str, Any] = {
    "micro_batch_size": 3,
    "micro_batches_per_step": 8,
    "clip_norm": 2.0,
    "zero_stage": 2,
}


def _given(folder: Path, settings: object) -> PretrainConfig:
    path = folder / "ds_config.json"
    path.write_text(json.dumps(settings))
    return PretrainConfig(**RECIPE, ds_config=str(path))


def test_the_recipes_settings_by_hand() -> None:
    """Oracle: 8 micro-batches of 3 on 4 ranks are 2 turns a rank; on 3 ranks 3, of which one counts
    nothing. Neither half precision is on, and DeepSpeed prints nothing."""
    for world_size, turns in ((4, 2), (3, 3)):
        settings = engine_settings(PretrainConfig(**RECIPE), world_size)
        assert settings["train_micro_batch_size_per_gpu"] == 3
        assert settings["gradient_accumulation_steps"] == turns
        assert settings["train_batch_size"] == 3 * turns * world_size
        assert settings["gradient_clipping"] == 2.0
        assert settings["zero_optimization"] == {"stage": 2}
        assert not settings["bf16"]["enabled"] and not settings["fp16"]["enabled"]
        assert settings["steps_per_print"] > 10**6
        assert "amp" not in settings


def test_fp16_finds_its_scale() -> None:
    """Oracle: DeepSpeed's documentation: loss_scale 0 is dynamic scaling."""
    settings = engine_settings(PretrainConfig(precision="fp16"), 1)
    assert settings["fp16"] == {"enabled": True, "loss_scale": 0}


def test_bf16_sums_gradients_in_float32() -> None:
    """Oracle: DeepSpeed's grad_accum_dtype, which it takes under ZeRO only; the recipe can say
    otherwise, and float32 weights need none of it."""
    settings = engine_settings(PretrainConfig(precision="bf16", zero_stage=0), 1)
    assert settings["data_types"] == {"grad_accum_dtype": "fp32"}
    assert settings["zero_optimization"] == {"stage": 1}
    training = PretrainConfig(precision="bf16", zero_stage=0, accumulate_precision="training")
    for config in (training, PretrainConfig(zero_stage=0)):
        settings = engine_settings(config, 1)
        assert "data_types" not in settings and settings["zero_optimization"] == {"stage": 0}


@pytest.mark.parametrize(
    "settings, key, got, expected, field",
    [
        ({"train_batch_size": 99}, "train_batch_size", "99", "24", "micro_batches_per_step = 8"),
        (
            {"train_micro_batch_size_per_gpu": 4},
            "train_micro_batch_size_per_gpu",
            "4",
            "3",
            "micro_batch_size = 3",
        ),
        (
            {"gradient_accumulation_steps": 1},
            "gradient_accumulation_steps",
            "1",
            "4",
            "micro_batches_per_step = 8",
        ),
        ({"gradient_clipping": 1.0}, "gradient_clipping", "1.0", "2.0", "clip_norm = 2.0"),
        (
            {"zero_optimization": {"stage": 3}},
            "zero_optimization.stage",
            "3",
            "2",
            "zero_stage = 2",
        ),
        ({"bf16": {"enabled": True}}, "bf16.enabled", "true", "false", "precision = fp32"),
        ({"fp16": {"enabled": True}}, "fp16.enabled", "true", "false", "precision = fp32"),
        ({"optimizer": {"type": "Adam"}}, "optimizer", '{"type": "Adam"}', "none", "AdamwSgd"),
        ({"torch_autocast": {"enabled": True}}, "torch_autocast", "true", "none", "precision"),
        (
            {"data_types": {"buffer_dtype": "bf16"}},
            "data_types.buffer_dtype",
            '"bf16"',
            "none",
            "float32 statistics",
        ),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler", "WarmupLR", "none", "pretrain.warmup"),
    ],
)
def test_a_file_that_contradicts_the_recipe(
    tmp_path: Path, settings: dict[str, Any], key: str, got: str, expected: str, field: str
) -> None:
    """Oracle: ValueError with file, key, both values and the recipe's field."""
    with pytest.raises(ValueError) as error:
        engine_settings(_given(tmp_path, settings), 2)
    reported = str(error.value)
    assert reported.startswith(f"{tmp_path}/ds_config.json: got {key} = ") and got in reported
    assert f"expected {expected}" in reported and field in reported


def test_what_the_recipe_does_not_speak_of_is_passed_on(tmp_path: Path) -> None:
    """Oracle: the file, key by key; "auto" and what agrees become the recipe's values, and an
    "auto" that the recipe knows nothing of is left to DeepSpeed's default."""
    given = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": 3,
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_optimization": {
            "stage": "auto",
            "reduce_bucket_size": 1000,
            "allgather_bucket_size": "auto",
            "offload_optimizer": {"device": "cpu"},
        },
        "comms_logger": {"enabled": True},
        "steps_per_print": 5,
    }
    settings = engine_settings(_given(tmp_path, given), 2)
    assert settings["train_batch_size"] == 24 and settings["gradient_clipping"] == 2.0
    assert settings["bf16"] == {"enabled": False}
    assert settings["zero_optimization"] == {
        "stage": 2,
        "reduce_bucket_size": 1000,
        "offload_optimizer": {"device": "cpu"},
    }
    assert settings["comms_logger"] == {"enabled": True} and settings["steps_per_print"] == 5
    assert not settings["zero_force_ds_cpu_optimizer"]


@pytest.mark.parametrize("text", ["{", "[]", None])
def test_a_file_that_is_none(tmp_path: Path, text: str | None) -> None:
    """Oracle: ValueError that names field and path, for broken JSON, a list and no file."""
    path = tmp_path / "ds_config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=f"pretrain.ds_config: got .*{path}"):
        engine_settings(PretrainConfig(ds_config=str(path)), 1)


def test_another_file_is_another_run(tmp_path: Path) -> None:
    """Oracle: the word that makes the runner train again follows the file's bytes."""
    words = []
    for stage in (1, 2):
        path = _given(tmp_path, {"zero_optimization": {"stage": stage}}).ds_config
        recipe = load_recipe("toy", [f"pretrain.ds_config={path}"])
        kind = next(k for k in stages_of(recipe) if k.name == "pretrain")
        words.append(external_inputs(recipe, kind)["pretrain.ds_config"])
    assert words[0] != words[1]


def test_what_a_device_has_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: ValueError naming the field; on one rank a synced BatchNorm is a local one."""
    sync = StudentConfig(batch_norm="sync")
    neck = StudentConfig(neck=SohoNeckConfig(batch_norm="sync"))
    accelerator = engine.get_accelerator()
    monkeypatch.setattr(accelerator, "device_name", lambda *_: "cpu")
    monkeypatch.setattr(accelerator, "is_fp16_supported", lambda: False)
    cpu = torch.device("cpu")
    check_batch_norm(sync, 1, cpu)
    for student, name in ((sync, "student.batch_norm"), (neck, "student.neck.batch_norm")):
        with pytest.raises(ValueError, match=f"{name}: got sync on 2 ranks"):
            check_batch_norm(student, 2, cpu)
    for precision in ("fp16", "tf32"):
        with pytest.raises(ValueError, match=f"pretrain.precision: got {precision} on a cpu"):
            engine.choose_precision(PretrainConfig(precision=precision))


@pytest.mark.parametrize(
    ("device", "has_bf16", "wanted"),
    [("cpu", True, "fp32"), ("cuda", False, "fp32"), ("cuda", True, "autocast-bf16")],
)
def test_precision_auto_is_what_the_device_has(
    device: str, has_bf16: bool, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the three cases by hand, a GPU that only emulates bf16 (V100) among them; other
    settings stay, and a named precision does."""
    accelerator = engine.get_accelerator()
    monkeypatch.setattr(accelerator, "device_name", lambda *_: device)
    emulated = {True: True, False: has_bf16}
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: emulated[including_emulation],
    )
    config = PretrainConfig(precision="auto", num_steps=7)
    assert engine.choose_precision(config) == PretrainConfig(precision=wanted, num_steps=7)
    named = PretrainConfig(precision="bf16")
    assert engine.choose_precision(named) is named


def test_precisions_that_a_stage_has_not() -> None:
    """Oracle: ValueError naming both fields."""
    for precision in ("fp16", "autocast-fp16"):
        with pytest.raises(ValueError, match=f"precision: got {precision} with zero_stage 0"):
            PretrainConfig(precision=precision, zero_stage=0)
    for name in ("apex-o1", "apex-O1", "O1", "amp"):
        with pytest.raises(ValueError, match=f"got {name}, expected .* apex .* autocast-fp16 is"):
            PretrainConfig(precision=name)
