"""Recipes are found, laid over each other and resolved. Oracle: small YAML files of the test's own,
and the dataclasses' own values."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.recipe.recipe import (
    RecipeError,
    built_in_recipes,
    dump_recipe,
    load_recipe,
    read_recipe,
)

COCO_PATHS = ["ingest.root=/data", "ingest.captions=/data/c.json"]
NEEDS_PATHS = {
    "nlvr": ["ingest.root=/data"],
    "photos": ["ingest.root=/data"],
    "coco": COCO_PATHS,
    "coco-detr": COCO_PATHS,
    "coco-zero-shot": COCO_PATHS,
    "soho-res18": COCO_PATHS,
    "soho-r101": COCO_PATHS,
    "kdvlp-base": COCO_PATHS,
    "both-r101": COCO_PATHS,
}


@pytest.mark.parametrize("name", sorted(built_in_recipes()))
def test_built_in_recipes_are_sound_and_round_trip(name: str, tmp_path: Path) -> None:
    """Every one loads, tells what it is for, and its resolved text is the same recipe again."""
    recipe = load_recipe(name, NEEDS_PATHS.get(name, ()))
    assert recipe.name == name
    assert f"boxless run {name}" in recipe.description
    resolved = tmp_path / "recipe.yaml"
    resolved.write_text(dump_recipe(recipe))
    assert load_recipe(resolved) == recipe


@pytest.mark.parametrize("name", ["kdvlp-base", "soho-res18", "soho-r101", "both-r101"])
def test_recipes_of_the_papers_sizes_have_no_settings_of_the_toy(name: str) -> None:
    """Oracle: threads left to PyTorch, bf16 wherever the recipe computes, finetuning of another
    length than the toy's."""
    given = ["ingest.root=/pictures", "ingest.captions=/captions.json"]
    recipe, toy = load_recipe(name, given), load_recipe("toy")
    threads = {part.num_threads for part in (recipe.distill, recipe.finetune, recipe.evaluate)}
    assert threads == {0}
    assert recipe.pretrain.precision == recipe.finetune.precision == "bf16"
    assert recipe.finetune.num_steps != toy.finetune.num_steps
    if recipe.pretrain.omvm.weight:
        assert recipe.distill.precision == "bf16"


@pytest.mark.parametrize("name", ["kdvlp-toy", "soho-toy", "both-toy"])
def test_toy_recipes_share_all_but_the_student_and_its_training(name: str) -> None:
    """Oracle: toy's own teacher and shards; the contrastive loss is toy's alone, of no paper."""
    recipe, toy = load_recipe(name), load_recipe("toy")
    for part in ("seed", "ingest", "teach", "distill", "launch"):
        assert getattr(recipe, part) == getattr(toy, part), part
    assert toy.pretrain.itc.weight > 0 and toy.student.itc_size > 0
    assert recipe.pretrain.itc.weight == 0 and recipe.student.itc_size == 0


def test_base_is_laid_under_and_overrides_over(tmp_path: Path) -> None:
    """Grandparent, parent, file and --set: the nearest wins, key by key."""
    (tmp_path / "old.yaml").write_text("base: toy\nseed: 3\ningest: {num_train: 7, num_heldout: 8}")
    (tmp_path / "deep").mkdir()
    young = tmp_path / "deep" / "young.yaml"
    young.write_text("base: ../old.yaml\ningest: {num_train: 9}\n")
    recipe = load_recipe(young, ["ingest.samples_per_shard=11", "seed=4"])
    assert recipe.name == "young" and recipe.seed == 4
    got = (recipe.ingest.num_train, recipe.ingest.num_heldout, recipe.ingest.samples_per_shard)
    assert got == (9, 8, 11)


def test_values_of_set_are_yaml() -> None:
    values = read_recipe("toy", ["student.widths=[8, 16]", "teach.learning_rate=1e-3", "name=x=y"])
    assert values["student"]["widths"] == [8, 16]
    assert values["teach"]["learning_rate"] == 1e-3
    assert values["name"] == "x=y"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("ingest.num_tran=3", "ingest.num_tran is not a key"),
        ("ingest.num_train", "expected KEY.PATH=VALUE"),
        ("=3", "expected KEY.PATH=VALUE"),
        ("ingest..num_train=3", "expected KEY.PATH=VALUE"),
        ("seed.x=3", "seed is a value without keys"),
        ("seed=[1", "is not a YAML value"),
        ("seed=-1", "seed is -1"),
        ("ingest.num_train=0", "ingest.num_train"),
        ("pretrain.pra.weight=-1", "pretrain.pra.weight"),
        ("pretrain.mvm.weight=1", "pretrain.mvm.weight is 1.0, but student.neck.kind is plain"),
        (
            "student.neck={kind: soho, width_mask: height}",
            "student.neck.width_mask is height, which masks columns",
        ),
        ("student.neck.kind=soho2", "student.neck.kind"),
        ("student.neck.dictionary={}", "student.neck.dictionary is not a key"),
        ("launch.nodes=2", "launch.master_address is null"),
    ],
)
def test_a_wrong_set_is_refused(override: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("toy", [override])
    assert words in str(caught.value)


def test_a_name_that_is_none_tells_those_that_are() -> None:
    with pytest.raises(RecipeError, match="toy-tiny.*Did you mean 'toy-tiny'"):
        load_recipe("toy-tinny")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", "not YAML that can be read"),
        ("- a\n- b\n", "expected keys and values"),
        ("base: 3\n", "expected the name or path"),
        ("base: mine.yaml\n", "is its own base"),
        ("base: absent.yaml\n", "cannot read the recipe"),
        ("seed: 1\nseed: 2\n", "given twice"),
        ("base: toy\nlaunch: {launcher: magic}\n", 'launch.launcher is "magic"; expected one of'),
    ],
)
def test_a_wrong_file_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert words in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(RecipeError, match="cannot read the recipe"):
            load_recipe(f"{path}/" if path == tmp_path else path)
