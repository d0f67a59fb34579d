"""DeepSpeed's configuration: from the recipe, and from the user's own `ds_config.json`.

What the recipe says is the recipe's to say: a file that says
otherwise is an error, one that says "auto" gets the recipe's value. What the recipe does not speak
of (offload, bucket sizes, loggers, profilers ...) is passed on. Keys are explained at
https://www.deepspeed.ai/docs/config-json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from boxless.errors import BoxlessError
from stages.json_text import parse_json
from stages.training.config import SCALED, TrainingConfig

AUTO = "auto"
AUTOCAST = {"autocast-bf16": "bfloat16", "autocast-fp16": "float16"}
"""What convolutions and matrix products compute in, by precision."""
OURS_ALONE = {
    "optimizer": "AdamwSgd with the rates, decays and betas of {section}",
    "scheduler": "{section}.schedule, {section}.warmup and {section}.num_steps",
    "elasticity": "any number of ranks, by {section}.micro_batches_per_step",
    "checkpoint.load_universal": "checkpoints that other numbers of ranks can read anyway",
    "torch_autocast": "{section}.precision",
    "amp": "{section}.precision",
    "data_types.buffer_dtype": "float32 statistics and codes under any precision",
}
"""Settings of DeepSpeed's for what the recipe, or Boxless, does; a file may not have them."""
DEFAULTS: dict[str, Any] = {
    "steps_per_print": 10**9,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}
"""Ours where a file says nothing: metrics are ours, and so is the optimizer."""


def engine_settings(config: TrainingConfig, world_size: int) -> dict[str, Any]:
    """What DeepSpeed is started with: the recipe's settings over those of its `ds_config`.

    Raises ValueError where the two disagree, or where the file is none.
    """
    ours = recipe_settings(config, world_size)
    given = read_settings(Path(config.ds_config), config.section) if config.ds_config else {}
    for section, instead in OURS_ALONE.items():
        got = _at(given, tuple(section.split(".")))
        if got is not None:
            raise BoxlessError(
                f"{config.ds_config}: got {section} = {json.dumps(got)}, expected none, as the "
                f"recipe has {instead.format(section=config.section)}; remove it from the file"
            )
    for path, wanted in _leaves(ours):
        got = _at(given, path)
        if got is not None and got != AUTO and got != wanted:
            raise BoxlessError(
                f"{config.ds_config}: got {'.'.join(path)} = {json.dumps(got)}, expected "
                f"{json.dumps(wanted)}, which follows from the recipe ({_source(path, config)}); "
                'change one of them, or say "auto"'
            )
    return _merged(_merged(DEFAULTS, _without_auto(given)), ours)


def recipe_settings(config: TrainingConfig, world_size: int) -> dict[str, Any]:
    """What follows from the recipe alone.

    Every rank takes the same number of turns a step; where the ranks do not share its micro-batches
    evenly, some turns count nothing (`sharding.order.turns.turns`, `Loop._weight`).
    """
    num_turns = -(-config.micro_batches_per_step // world_size)
    settings: dict[str, Any] = {
        "train_batch_size": config.micro_batch_size * num_turns * world_size,
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": num_turns,
        "gradient_clipping": config.clip_norm,
        "zero_optimization": {"stage": zero_stage(config)},
        "bf16": {"enabled": config.precision == "bf16"},
        "fp16": {"enabled": config.precision == "fp16"},
    }
    if config.precision in AUTOCAST:
        # By default DeepSpeed would also add up gradients of these modules over ranks in bf16.
        settings["torch_autocast"] = {
            "enabled": True,
            "dtype": AUTOCAST[config.precision],
            "lower_precision_safe_modules": [],
        }
    if config.precision in SCALED:
        # 0: the scale is found while training.
        settings["fp16"]["loss_scale"] = 0
    if sums_in_fp32(config):
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


def sums_in_fp32(config: TrainingConfig) -> bool:
    """Whether gradients of bf16 weights are added up in float32."""
    return config.precision == "bf16" and config.accumulate_precision == "fp32"


def zero_stage(config: TrainingConfig) -> int:
    """The recipe's; 1 in place of 0 where gradients of bf16 weights are added up in float32, which
    DeepSpeed does under ZeRO only."""
    return max(1, config.zero_stage) if sums_in_fp32(config) else config.zero_stage


def read_settings(path: Path, section: str) -> dict[str, Any]:
    """The content of the file. Raises ValueError where it is not there or is no JSON object."""
    try:
        settings = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BoxlessError(
            f"{section}.ds_config: got {path} ({error}), expected DeepSpeed's settings as JSON"
        ) from error
    if not isinstance(settings, dict):
        raise BoxlessError(
            f"{section}.ds_config: got a {type(settings).__name__} in {path}, expected an object"
        )
    return settings


def _source(path: tuple[str, ...], config: TrainingConfig) -> str:
    """The recipe's fields that a setting follows from, with their values."""
    fields = {
        "train_micro_batch_size_per_gpu": ("micro_batch_size",),
        "train_batch_size": ("micro_batch_size", "micro_batches_per_step"),
        "gradient_accumulation_steps": ("micro_batches_per_step",),
        "gradient_clipping": ("clip_norm",),
        "zero_optimization": ("zero_stage",),
        "data_types": ("precision", "accumulate_precision"),
    }.get(path[0], ("precision",))
    return ", ".join(f"{config.section}.{name} = {getattr(config, name)}" for name in fields)


def _leaves(
    settings: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _at(settings: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        settings = settings.get(key) if isinstance(settings, dict) else None
    return settings


def _without_auto(settings: dict[str, Any]) -> dict[str, Any]:
    """Without what is "auto": the recipe's values come over it, or DeepSpeed's defaults hold."""
    return {
        key: _without_auto(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if value != AUTO
    }


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid over `under`, section by section."""
    both = {**under, **over}
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(under.get(key), dict):
            both[key] = _merged(under[key], value)
    return both
