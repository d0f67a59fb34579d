"""Old names in recipes still work, with a warning."""

from __future__ import annotations

import copy

import pytest

from pipeline.recipe.recipe import load_recipe
from pipeline.recipe.renamed import with_new_names
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
