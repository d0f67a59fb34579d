"""The stages in running order, in one table: settings, inputs and outputs of each."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.recipe.dataclass_values import fill_defaults, plain
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.renamed import rename
from pipeline.runner.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class StageKind:
    """One stage as the orchestrator sees it."""

    name: str
    parts: tuple[str, ...]
    """Keys of the recipe that shape its output."""
    inputs: tuple[str, ...]
    """Stages whose output it reads."""
    folders: tuple[str, ...]
    """What it writes, in the run folder; its record is in the first."""
    outputs: tuple[str, ...]
    """Patterns of the files, in the run folder, that make it complete; the first has to match."""
    is_shards: bool = False
    """Whether its output is shards, each redone on its own when what shapes it has changed."""
    is_expensive: bool = False
    """Whether its output took so long to compute that it is backed up, not overwritten."""

    def folder(self, run: RunFolder) -> Path:
        """The folder of its record."""
        return run.root / self.folders[0]

    def recipe_parts(self, recipe: Recipe) -> dict[str, Any]:
        """The part of the recipe that shapes its output, as plain values."""
        return _comparable({part: plain(getattr(recipe, part)) for part in self.parts})

    def recorded_parts(self, recorded: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
        """The same part as a record has it, in which a key that is younger than the record has its
        default, and one that has another name now its new one: neither is a reason to compute
        anything again."""
        recorded = copy.deepcopy(recorded)
        rename(recorded)
        filled = {
            part: fill_defaults(values, getattr(recipe, part))
            if isinstance(values, dict)
            else values
            for part, values in recorded.items()
        }
        return _comparable(filled)


# Keys of any part that say how often, how fast or with how much memory a stage works, not what
# comes of it: to change one is no reason to compute anything again.
_SHAPES_NOTHING = {
    "cache_bytes",
    "checkpoint_activations",
    "checkpoint_every_steps",
    "checkpoint_steps",
    "cudnn_benchmark",
    "keep_checkpoints",
    "log_every_steps",
    "log_steps",
    "profile_steps",
    "max_nonfinite_steps",
    "max_skipped",
    "num_decoders",
    "num_threads",
    "num_workers",
    "on_fault",
    "peak_tflops",
    "stall_seconds",
    "validate_steps",
    "wandb_project",
}


_HALF = ("bf16", "fp16")
"""Precisions of training whose weights are not float32."""


def _comparable(values: dict[str, Any]) -> dict[str, Any]:
    """Parts of a recipe, so that those that shape the same output are equal. Float32 weights are
    saved as such under either `save_precision`, whose default was "training" before 0.2."""
    values = _without_settings_of_the_machine(values)
    return {
        part: {**fields, "save_precision": "fp32"}
        if isinstance(fields, dict)
        and "save_precision" in fields
        and fields.get("precision") not in _HALF
        else fields
        for part, fields in values.items()
    }


def _without_settings_of_the_machine(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_settings_of_the_machine(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in _SHAPES_NOTHING
    }


def stages_of(recipe: Recipe) -> tuple[StageKind, ...]:
    """Every stage of the recipe, in running order; finetune only where it names a task, teach only
    where distill uses the run's own teacher."""
    task = recipe.finetune.task
    has_teacher = recipe.distill.teacher == "run"
    teach = ("teach",) if has_teacher else ()
    absent = {"finetune": task is None, "teach": not has_teacher}
    kinds = (
        StageKind(
            name="ingest",
            parts=("seed", "ingest"),
            inputs=(),
            folders=("images",),
            outputs=("images/catalog.json",),
            is_shards=True,
        ),
        StageKind(
            name="teach",
            parts=("seed", "teach"),
            inputs=("ingest",),
            folders=("teacher",),
            outputs=("teacher/config.json", "teacher/names.json", "teacher/model.safetensors"),
            is_expensive=True,
        ),
        StageKind(
            name="distill",
            parts=("distill",),
            inputs=("ingest", *teach),
            folders=("objects",),
            outputs=("objects/catalog.json",),
            is_shards=True,
        ),
        StageKind(
            name="pretrain",
            parts=("seed", "student", "pretrain"),
            # Shards from elsewhere are none of the run's: the orchestrator checks them itself.
            inputs=() if recipe.pretrain.data.sources else ("distill",),
            folders=("pretrain", "student"),
            outputs=("student/config.json", "student/*"),
            is_expensive=True,
        ),
        StageKind(
            name="finetune",
            parts=("seed", "finetune"),
            inputs=("ingest", "pretrain"),
            folders=(f"transfer/{task}",),
            outputs=(f"transfer/{task}/scores.json",),
            is_expensive=True,
        ),
        StageKind(
            name="evaluate",
            parts=("seed", "evaluate"),
            # A student of elsewhere is scored on image shards alone.
            inputs=("ingest",)
            if recipe.evaluate.student
            else ("ingest", *teach, "distill", "pretrain"),
            folders=(f"transfer/{recipe.evaluate.folder_name}",),
            outputs=(f"transfer/{recipe.evaluate.folder_name}/scores.json",),
        ),
    )
    return tuple(kind for kind in kinds if not absent.get(kind.name, False))


STAGE_NAMES = ("ingest", "teach", "distill", "pretrain", "finetune", "evaluate")
