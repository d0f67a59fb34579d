"""Ablation of the dictionary and the teacher's objects: four students with the same steps and
seeds.

The first three stages run once, in RUN; each student has a run folder of its own under
RUN/ablation and reads those shards through links. It is tuned on the recipe's task too, where
there is one. Stopped and started again it continues, as every run. What it found is
RUN/ablation.json, written after each seed, and a section of the page. Several may share out the
students of one folder among them (`--only`), on one machine or many.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from boxless.errors import BoxlessError
from pipeline.recipe.recipe import Recipe, load_recipe
from pipeline.runner.launch_plan import LaunchOverrides
from pipeline.runner.run_folder import RunFolder
from pipeline.runner.run_stages import run_stages
from sharding.writing.atomic import write_json
from stages.student.vision.neck_config import NeckConfig, PlainNeckConfig

SHARED = ("images", "teacher", "objects")
HERE = LaunchOverrides(launcher=None, nodes=None, procs_per_node=None)
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What a student learns from beside words and matching.

    has_dictionary: SOHO's, with masked visual modelling (mvm).
    has_objects: the teacher's, with KD-VLP's omvm and pra.
    """

    has_dictionary: bool
    has_objects: bool


VARIANTS = {
    "plain": Variant(has_dictionary=False, has_objects=False),
    "soho": Variant(has_dictionary=True, has_objects=False),
    "kdvlp": Variant(has_dictionary=False, has_objects=True),
    "both": Variant(has_dictionary=True, has_objects=True),
}


def ablate(
    recipe: Recipe, run: RunFolder, *, num_seeds: int, only: Collection[str] = tuple(VARIANTS)
) -> None:
    """Train and score a student for each variant and seed, then print the comparison, and write it
    where it is one of all variants.

    Raises what `pipeline.runner.run_stages.run_stages` raises, and BoxlessError before any training
    where a variant has settings that do not go together.
    """
    _check_variants(recipe, only)
    run_stages(recipe, run, ["ingest", "teach", "distill"], HERE, dry_run=False)
    found: dict[str, dict[str, Scores]] = {name: {} for name in VARIANTS if name in only}
    for seed in range(recipe.seed, recipe.seed + num_seeds):
        for variant in found:
            Console().rule(f"{variant}, seed {seed}")
            own = linked_run(run, f"{variant}-{seed}")
            found[variant][str(seed)] = trained(variant_recipe(recipe, variant, seed), own)
        if len(found) == len(VARIANTS):
            write_json(run.root / "ablation.json", compare(found, recipe.pretrain.num_steps))
    show(compare(found, recipe.pretrain.num_steps))


def _check_variants(recipe: Recipe, only: Collection[str]) -> None:
    """Raises BoxlessError that names the variant, before any other is trained."""
    from stages.pretrain.run import check_start  # torch takes seconds to import

    for name in VARIANTS:
        if name in only:
            variant = variant_recipe(recipe, name, recipe.seed)
            try:
                check_start(variant.pretrain, variant.student)
            except BoxlessError as error:
                raise BoxlessError(f"variant {name}: {error}") from error


def trained(recipe: Recipe, run: RunFolder) -> Scores:
    """Pretrain and evaluate a student, and tune it where the recipe has a task: all its scores."""
    task = recipe.finetune.task
    stages = ["pretrain", *(["finetune"] if task else []), "evaluate"]
    run_stages(recipe, run, stages, HERE, dry_run=False)
    scores: Scores = {}
    for part in ("evaluate", *([task] if task else [])):
        scores |= json.loads((run.transfer / part / "scores.json").read_text())
    return scores


def variant_recipe(recipe: Recipe, name: str, seed: int) -> Recipe:
    """The recipe with another seed, with or without dictionary and objects, all else the same.

    The settings of both are the recipe's own. Where it has no dictionary, soho-toy's is used, with
    both-toy's weight of mvm; where it learns nothing from objects, both-toy's weights of omvm and
    pra.
    """
    variant, own, usual = VARIANTS[name], recipe.pretrain, load_recipe("both-toy").pretrain
    dictionary = own if own.mvm.weight else usual
    objects = own if own.omvm.weight or own.pra.weight else usual
    return replace(
        recipe,
        name=f"{recipe.name}-{name}-{seed}",
        seed=seed,
        student=replace(recipe.student, neck=_neck(recipe, variant)),
        pretrain=replace(
            own,
            mvm=replace(own.mvm, weight=dictionary.mvm.weight * variant.has_dictionary),
            omvm=replace(own.omvm, weight=objects.omvm.weight * variant.has_objects),
            pra=replace(own.pra, weight=objects.pra.weight * variant.has_objects),
        ),
    )


def _neck(recipe: Recipe, variant: Variant) -> NeckConfig:
    if not variant.has_dictionary:
        return PlainNeckConfig()
    neck = recipe.student.neck
    return load_recipe("soho-toy").student.neck if neck.kind == "plain" else neck


def compare(found: dict[str, dict[str, Scores]], num_steps: int) -> dict[str, Any]:
    """Values by variant, seed and score, and chance by score. The teacher's own score is left out:
    it is the same for all."""
    chance: dict[str, float] = {}
    variants: dict[str, dict[str, dict[str, float]]] = {}
    for variant, seeds in found.items():
        variants[variant] = {}
        for seed, scores in seeds.items():
            students = {k: v for k, v in scores.items() if not k.startswith("teacher_")}
            variants[variant][seed] = {name: s["value"] for name, s in students.items()}
            chance |= {name: s["chance"] for name, s in students.items()}
    return {"steps": num_steps, "variants": variants, "chance": chance}


def show(comparison: dict[str, Any]) -> None:
    """Print mean and range over seeds of every score, variant beside variant."""
    num_seeds = max(len(seeds) for seeds in comparison["variants"].values())
    table = Table(
        title=f"The same {comparison['steps']} steps, {num_seeds} seeds: mean (lowest to highest)"
    )
    table.add_column("score", no_wrap=True)
    for column in (*comparison["variants"], "chance"):
        table.add_column(column)
    for name, chance in comparison["chance"].items():
        cells = []
        for seeds in comparison["variants"].values():
            values = [scores[name] for scores in seeds.values() if name in scores]
            cells.append(_mean_and_range(values) if values else "not trained")
        table.add_row(name, *cells, f"{chance:.3f}")
    Console().print(table)


def _mean_and_range(values: list[float]) -> str:
    return f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def linked_run(run: RunFolder, name: str) -> RunFolder:
    """A run folder that shares the first stages' output with `run` through relative links."""
    own = RunFolder(run.root / "ablation" / name)
    own.make()
    for folder in SHARED:
        link = own.root / folder
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(run.root / folder, own.root))
    return own
