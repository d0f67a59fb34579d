"""The ablation: what differs between its variants, and what it makes of their scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cli import main as command_line
from pipeline.recipe.recipe import Recipe, load_recipe
from pipeline.runner import ablation
from pipeline.runner.ablation import VARIANTS, ablate, compare, linked_run, variant_recipe
from pipeline.runner.run_folder import RunFolder


def parts(recipe: Recipe) -> tuple[str, float, float, float]:
    """What a variant may change: the neck, and the weights of mvm, omvm and pra."""
    pretrain = recipe.pretrain
    weights = pretrain.mvm.weight, pretrain.omvm.weight, pretrain.pra.weight
    return (recipe.student.neck.kind, *weights)


def test_variants_have_dictionary_and_objects_or_not() -> None:
    """Oracle: written by hand. A recipe's own weights and dictionary are kept; kdvlp-toy,
    which has no dictionary, gets that of soho-toy."""
    toy = load_recipe("kdvlp-toy", ["pretrain.pra.weight=0.5"])
    assert [parts(variant_recipe(toy, name, 0)) for name in ("plain", "soho", "kdvlp", "both")] == [
        ("plain", 0.0, 0.0, 0.0),
        ("soho", 0.1, 0.0, 0.0),
        ("plain", 0.0, 1.0, 0.5),
        ("soho", 0.1, 1.0, 0.5),
    ]
    only_pra = load_recipe("kdvlp-toy", ["pretrain.omvm.weight=0"])
    assert parts(variant_recipe(only_pra, "kdvlp", 0)) == ("plain", 0.0, 0.0, 1.0)
    soho = load_recipe("soho-toy")
    assert variant_recipe(toy, "soho", 0).student == soho.student
    own = load_recipe("soho-toy", ["pretrain.mvm.weight=2", "student.neck.dictionary.num_codes=32"])
    assert variant_recipe(own, "both", 0).student == own.student
    assert parts(variant_recipe(own, "both", 0)) == ("soho", 2.0, 1.0, 1.0)


@pytest.mark.parametrize("name", VARIANTS)
def test_nothing_else_differs(name: str) -> None:
    """Oracle: with neck, weights, name and seed given back, the variant is the recipe."""
    recipe = load_recipe("toy")
    variant = variant_recipe(recipe, name, 7)
    assert (variant.name, variant.seed) == (f"toy-{name}-7", 7)
    pretrain = replace(
        variant.pretrain,
        mvm=recipe.pretrain.mvm,
        omvm=recipe.pretrain.omvm,
        pra=recipe.pretrain.pra,
    )
    student = replace(variant.student, neck=recipe.student.neck)
    restored = replace(variant, pretrain=pretrain, student=student, name="toy", seed=recipe.seed)
    assert restored == recipe


@pytest.mark.parametrize("task", [None, "nlvr"])
def test_every_student_is_trained_and_tuned_where_there_is_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str | None
) -> None:
    """Oracle: a runner that notes what it is asked for and leaves made-up scores; the comparison
    holds, of each seed, each variant's own."""
    asked: list[list[str]] = []

    def run_stages(
        recipe: Recipe, run: RunFolder, names: list[str], *rest: object, **more: object
    ) -> None:
        asked.append(names)
        for part in ("evaluate", "nlvr"):
            folder = run.transfer / part
            folder.mkdir(parents=True, exist_ok=True)
            value = len(asked) / 100
            scores = {f"{part}_score": {"value": value, "chance": 0.0}}
            (folder / "scores.json").write_text(json.dumps(scores))

    monkeypatch.setattr(ablation, "run_stages", run_stages)
    recipe = load_recipe("toy", [f"finetune.task={task or 'null'}"])
    ablate(recipe, RunFolder(tmp_path), num_seeds=2)
    stages = ["pretrain", "finetune", "evaluate"] if task else ["pretrain", "evaluate"]
    assert asked == [["ingest", "teach", "distill"], *[stages] * 8]
    found = json.loads((tmp_path / "ablation.json").read_text())
    assert set(found["variants"]) == {"plain", "soho", "kdvlp", "both"}
    names = ["evaluate_score", "nlvr_score"] if task else ["evaluate_score"]
    assert found["variants"]["soho"] == {
        "0": {name: 0.03 for name in names},
        "1": {name: 0.07 for name in names},
    }


def test_students_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: which students are trained; there is a comparison on disk only of all of them."""
    asked: list[str] = []

    def trained(recipe: Recipe, run: RunFolder) -> ablation.Scores:
        asked.append(run.root.name)
        return {"a_score": {"value": 0.5, "chance": 0.1}}

    monkeypatch.setattr(ablation, "run_stages", lambda *given, **named: None)
    monkeypatch.setattr(ablation, "trained", trained)
    run = RunFolder(tmp_path)
    ablate(load_recipe("toy"), run, num_seeds=2, only=["both", "soho"])
    assert asked == ["soho-0", "both-0", "soho-1", "both-1"]
    assert not (tmp_path / "ablation.json").exists()
    ablate(load_recipe("toy"), run, num_seeds=1)
    assert asked[4:] == [f"{name}-0" for name in VARIANTS]
    assert len(json.loads((tmp_path / "ablation.json").read_text())["variants"]) == 4


def test_every_variant_can_be_asked_for() -> None:
    """Oracle: the variants; the command line names them itself, to start without their imports."""
    asked = command_line.command_line_parser().parse_args(["ablation", "toy", "--only", *VARIANTS])
    assert asked.only == list(VARIANTS)


def test_comparison_keeps_every_seed_and_leaves_out_the_teacher() -> None:
    """Oracle: written by hand."""
    scores = {
        "image_to_text_r1": {"value": 0.5, "chance": 0.01},
        "teacher_ap50": {"value": 0.9, "chance": 0.0},
    }
    one = {"image_to_text_r1": 0.5}
    found = {name: {"0": scores, "1": scores} for name in VARIANTS}
    assert compare(found, 900) == {
        "steps": 900,
        "variants": {name: {"0": one, "1": one} for name in VARIANTS},
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


def test_settings_of_a_variant_are_checked_before_any_training(tmp_path: Path) -> None:
    """Oracle: the variant and the field are named; the start by CCA is for necks without a
    dictionary, and nothing is run before."""
    settings = ["student.itc_size=32", "pretrain.itc.weight=1", "pretrain.itc.start=cca"]
    recipe = load_recipe("toy", settings)
    with pytest.raises(ValueError, match="variant soho: pretrain.itc.start: got cca"):
        ablate(recipe, RunFolder(tmp_path / "run"), num_seeds=1, only=["soho"])
    assert not (tmp_path / "run").exists()
