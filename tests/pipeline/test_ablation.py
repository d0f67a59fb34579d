"""The ablation: what differs between its variants, and what it makes of their scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.ablation import linked_run, compare, variant_recipe
from pipeline.recipe import load_recipe
from pipeline.run_folder import RunFolder


def test_plain_differs_from_distilled_in_two_weights_and_the_name_only() -> None:
    """Oracle: giving the two weights and the name back makes the recipes equal."""
    recipe = load_recipe("toy")
    distilled, plain = (variant_recipe(recipe, name, 7) for name in ("distilled", "plain"))
    assert (plain.pretrain.omvm.weight, plain.pretrain.pra.weight) == (0.0, 0.0)
    assert plain.seed == distilled.seed == 7
    restored = replace(
        plain.pretrain,
        omvm=replace(plain.pretrain.omvm, weight=recipe.pretrain.omvm.weight),
        pra=replace(plain.pretrain.pra, weight=recipe.pretrain.pra.weight),
    )
    assert replace(plain, pretrain=restored, name=distilled.name) == distilled


def test_comparison_keeps_every_seed_and_leaves_out_the_teacher() -> None:
    """Oracle: written by hand."""
    scores = {
        "image_to_text_r1": {"value": 0.5, "chance": 0.01},
        "teacher_ap50": {"value": 0.9, "chance": 0.0},
    }
    found = {"distilled": {"0": scores, "1": scores}, "plain": {"0": scores, "1": scores}}
    one = {"image_to_text_r1": 0.5}
    assert compare(found, 900) == {
        "steps": 900,
        "variants": {"distilled": {"0": one, "1": one}, "plain": {"0": one, "1": one}},
        "chance": {"image_to_text_r1": 0.01},
    }


def test_students_read_the_shards_of_the_one_run(tmp_path: Path) -> None:
    """Oracle: a file in the run's images is the same file through the student's folder; a second
    call changes nothing; the whole run may be moved, as the links are relative."""
    run = RunFolder(tmp_path / "run")
    for folder in (run.images, run.teacher, run.objects):
        folder.mkdir(parents=True)
    (run.images / "catalog.json").write_text("{}")
    for _ in range(2):
        own = linked_run(run, "plain-0")
        assert (own.images / "catalog.json").samefile(run.images / "catalog.json")
    moved = tmp_path / "moved"
    run.root.rename(moved)
    assert (moved / "ablation" / "plain-0" / "images" / "catalog.json").exists()
