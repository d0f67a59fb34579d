"""Old names in recipes still work, with a warning."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from pipeline.recipe.dataclass_values import RecipeError, plain
from pipeline.recipe.recipe import load_recipe
from pipeline.recipe.renamed import KEYS, with_new_names
from pipeline.runner.stages.stage_graph import stages_of


def test_old_names_are_read_with_a_warning() -> None:
    """Oracle: by hand: task truth is nlvr, batch_size the micro-batch, which an override wins."""
    with pytest.warns(FutureWarning, match="finetune.task: truth is called nlvr now"):
        recipe = load_recipe("nlvr", ["finetune.task=truth", "ingest.root=x"])
    assert recipe.finetune.task == "nlvr"
    with pytest.warns(
        FutureWarning, match="finetune.batch_size is called finetune.micro_batch_size"
    ):
        recipe = load_recipe("nlvr", ["finetune.batch_size=7", "ingest.root=x"])
    assert recipe.finetune.micro_batch_size == 7
    with pytest.warns(FutureWarning, match="hide is called pretrain.omvm.mask_probability now"):
        recipe = load_recipe("toy", ["pretrain.omvm.hide=0.25"])
    assert recipe.pretrain.omvm.mask_probability == 0.25
    with pytest.warns(FutureWarning, match="mask_cell is called student.visual_mask_embedding now"):
        recipe = load_recipe("toy", ["student.mask_cell=zero"])
    assert recipe.student.visual_mask_embedding == "zero"
    with pytest.warns(FutureWarning, match="distill.similarity: lexical is called .*kind.* now"):
        assert load_recipe("toy", ["distill.similarity=lexical"]) == load_recipe("toy")


def test_flat_settings_of_a_teacher_are_read_with_a_warning() -> None:
    """Those of the first releases' recipe for photographs. Oracle: by hand, the parts of today's
    TeacherConfig; and that every new name is a key of a recipe."""
    old = {
        "shorter_px": 256,
        "anchor_sizes_px": [[24.0, 48.0]],
        "proposal_iou": 0.5,
        "box_head": "conv",
        "object_iou": 0.4,
        "max_objects": 50,
    }
    with pytest.warns(FutureWarning, match="teach.net.box_head is called teach.net.boxes.head"):
        recipe = load_recipe("toy", [f"teach.net.{name}={value}" for name, value in old.items()])
    net = recipe.teach.net
    assert (net.picture.shorter_px, net.proposals.anchor_sizes_px) == (256, ((24.0, 48.0),))
    assert (net.proposals.iou, net.boxes.head, net.choice.iou) == (0.5, "conv", 0.4)
    assert net.choice.max_objects == 50
    recipes = [plain(load_recipe("toy", [f"finetune.task={task}"])) for task in ("nlvr", "vqa")]
    for new in KEYS.values():
        assert any(_has(recipe, new.split(".")) for recipe in recipes), new


def _has(values: Any, keys: list[str]) -> bool:
    for key in keys:
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True


def test_what_is_no_mapping_is_left_for_the_checks() -> None:
    """Oracle: the recipe's own error, and no other exception."""
    with pytest.warns(FutureWarning), pytest.raises(RecipeError, match="teach.net.picture"):
        load_recipe("toy", ["teach.net.picture=3", "teach.net.shorter_px=96"])


def test_a_record_under_old_names_is_no_change() -> None:
    """Oracle: the parts of the recipe itself, of which the record has one key by its old name."""
    recipe = load_recipe("toy")
    (kind,) = (kind for kind in stages_of(recipe) if kind.name == "pretrain")
    today = kind.recipe_parts(recipe)
    recorded = copy.deepcopy(today)
    omvm = recorded["pretrain"]["omvm"]
    omvm["hide"] = omvm.pop("mask_probability")
    assert kind.recorded_parts(recorded, recipe) == today
    assert "hide" in omvm


def test_a_key_without_a_use_is_left_out_with_a_warning() -> None:
    """Oracle: by hand: the same recipe as without it."""
    with pytest.warns(FutureWarning, match="evaluate.pairs_per_batch has no use any more"):
        recipe = load_recipe("toy", ["evaluate.pairs_per_batch=7"])
    assert recipe == load_recipe("toy")


def test_new_names_stay() -> None:
    """Oracle: the same values; what is no mapping is left for the recipe's checks."""
    for values in ({"finetune": {"task": "vqa"}}, {"finetune": 3}, {}):
        assert with_new_names(dict(values)) == values
