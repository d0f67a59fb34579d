"""Pretraining on shards from elsewhere: what it then depends on, and what shapes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.recipe.recipe import Recipe, RecipeError, load_recipe
from pipeline.runner.run_folder import RunFolder
from pipeline.runner.run_stages import plan_stage
from pipeline.runner.stages.stage_graph import StageKind, stages_of
from pipeline.runner.stages.state import StageRecord, write_done, write_started
from sharding.format.catalog import write_catalog
from sharding.format.schema import Sample, object_dtype
from sharding.writing.shard_writer import write_shard


def _recipe(folder: Path, *values: str) -> Recipe:
    source = f'{{"folder": "{folder}"}}'
    return load_recipe("toy", [f"pretrain.data.sources=[{source}]", *values])


def _pretrain(recipe: Recipe) -> StageKind:
    return next(kind for kind in stages_of(recipe) if kind.name == "pretrain")


def _write(folder: Path, key: str) -> None:
    objects = np.zeros(1, object_dtype(feature_size=2, num_top=1, attributes=False))
    info = {"captions": [], "width": 8, "height": 8, "phrases": []}
    sample = Sample(key=key, image=b"x", extension="jpg", info=info, objects=objects)
    write_shard(folder / "train-000000.tar", [sample], fingerprint={})
    write_catalog(folder, kind="objects", splits={"train-000000.tar": "train"}, metadata={})


def test_shards_from_elsewhere_stand_in_for_distill(tmp_path: Path) -> None:
    """Oracle: no stage's output is an input; without sources it is distill's."""
    assert _pretrain(_recipe(tmp_path)).inputs == ()
    assert _pretrain(load_recipe("toy", [])).inputs == ("distill",)


def test_other_shards_are_a_reason_to_train_again(tmp_path: Path) -> None:
    """Oracle: the same bytes give the same plan, other bytes another one; another policy for
    damaged samples none, for a run that stopped must continue with it."""
    folder, run = tmp_path / "shards", RunFolder(tmp_path / "run")
    _write(folder, "one")
    recipe = _recipe(folder)
    kind = _pretrain(recipe)
    plan = plan_stage(run, recipe, kind, look_outside=True)
    (run.root / "pretrain").mkdir(parents=True)
    write_done(run, kind, StageRecord(stage="pretrain", shaped_by=plan.shaped_by))
    assert plan_stage(run, recipe, kind, look_outside=True).action == "skip"
    lenient = _recipe(folder, "pretrain.data.on_fault=skip", "pretrain.data.max_skipped=5")
    assert plan_stage(run, lenient, _pretrain(lenient), look_outside=True).action == "skip"
    _write(folder, "two")
    again = plan_stage(run, recipe, kind, look_outside=True)
    assert again.action == "redo" and "pretrain.data.sources" in again.why


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ('pretrain.data.sources=[{"folder": ""}]', "pretrain.data.sources[0].folder"),
        ('pretrain.data.sources=[{"folder": "a", "weight": 0}]', "sources[0].weight"),
        ('pretrain.data.sources=[{"folder": "a", "weight": 1}, {"folder": "b"}]', "all alike"),
        ("pretrain.data.on_fault=go-on", "pretrain.data.on_fault"),
        ("pretrain.data.max_skipped=-1", "pretrain.data.max_skipped"),
        ("pretrain.data.stall_seconds=0", "pretrain.data.stall_seconds"),
    ],
)
def test_settings_that_cannot_be_meant(value: str, named: str) -> None:
    """Oracle: the error names the field."""
    with pytest.raises(RecipeError) as caught:
        load_recipe("toy", [value])
    assert named in str(caught.value)


def test_other_task_files_are_a_reason_to_finetune_again(tmp_path: Path) -> None:
    """Oracle: the same files give the same plan; a changed line, or a changed file in a folder of
    pictures, another, which names the field."""
    lines, pictures = tmp_path / "dev.jsonl", tmp_path / "pictures"
    (pictures / "val2014").mkdir(parents=True)
    (pictures / "val2014" / "a.jpg").write_bytes(b"1")
    lines.write_text("one")
    recipe = load_recipe(
        "toy",
        ["finetune.task=snli_ve", f"finetune.data.train={lines}", f"finetune.data.heldout={lines}",
         f"finetune.data.heldout_images={pictures}"],
    )  # fmt: skip
    kind = next(kind for kind in stages_of(recipe) if kind.name == "finetune")
    run = RunFolder(tmp_path / "run")
    kind.folder(run).mkdir(parents=True)
    shaped_by = plan_stage(run, recipe, kind, look_outside=True).shaped_by
    write_started(run, kind, StageRecord(stage="finetune", shaped_by=shaped_by))
    assert plan_stage(run, recipe, kind, look_outside=True).action == "continue"
    (pictures / "val2014" / "a.jpg").write_bytes(b"22")
    again = plan_stage(run, recipe, kind, look_outside=True)
    assert again.action == "redo" and "finetune.data.heldout_images" in again.why
    lines.write_text("another")
    again = plan_stage(run, recipe, kind, look_outside=True)
    assert "finetune.data.train" in again.why and "finetune.data.heldout" in again.why
