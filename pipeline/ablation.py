"""Does distillation pay? The same steps and seeds with and without the teacher's objectives.

Reached from `boxless ablation RECIPE`. The first three stages run once, in RUN; each student has a
run folder of its own under RUN/ablation and reads those shards through links. Stopped and started
again it goes on, as every run. What it found is RUN/ablation.json, and a section of the page.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from pipeline.conduct import conduct
from pipeline.launching import Asked
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder
from sharding.atomic import write_json

SHARED = ("images", "teacher", "objects")
VARIANTS = ("distilled", "plain")


def ablate(recipe: Recipe, run: RunFolder, *, num_seeds: int) -> None:
    """Train and score a student for each variant and seed, then write and print the comparison.

    Raises what `pipeline.conduct.conduct` raises.
    """
    asked = Asked(launcher=None, nodes=None, procs_per_node=None)
    conduct(recipe, run, ["ingest", "teach", "distill"], asked, dry_run=False)
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {name: {} for name in VARIANTS}
    for seed in range(recipe.seed, recipe.seed + num_seeds):
        for variant in VARIANTS:
            Console().rule(f"{variant}, seed {seed}")
            own = linked_run(run, f"{variant}-{seed}")
            conduct(
                variant_recipe(recipe, variant, seed),
                own,
                ["pretrain", "evaluate"],
                asked,
                dry_run=False,
            )
            scores = json.loads((own.transfer / "evaluate" / "scores.json").read_text())
            found[variant][str(seed)] = scores
    comparison = compare(found, recipe.pretrain.num_steps)
    write_json(run.root / "ablation.json", comparison)
    show(comparison)


def variant_recipe(recipe: Recipe, variant: str, seed: int) -> Recipe:
    """The recipe with another seed; `plain` has the objectives that need a teacher switched off
    and nothing else changed."""
    pretrain = recipe.pretrain
    if variant == "plain":
        pretrain = replace(
            pretrain,
            omvm=replace(pretrain.omvm, weight=0.0),
            pra=replace(pretrain.pra, weight=0.0),
        )
    return replace(recipe, name=f"{recipe.name}-{variant}-{seed}", seed=seed, pretrain=pretrain)


def compare(
    found: dict[str, dict[str, dict[str, dict[str, float]]]], num_steps: int
) -> dict[str, object]:
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


def show(comparison: dict) -> None:
    """Print mean and range over seeds of every score, variant beside variant."""
    table = Table(title=f"The same {comparison['steps']} steps with and without distillation")
    table.add_column("score")
    for variant, seeds in comparison["variants"].items():
        table.add_column(f"{variant}, {len(seeds)} seeds: mean (lowest to highest)")
    table.add_column("chance")
    for name, chance in comparison["chance"].items():
        cells = []
        for seeds in comparison["variants"].values():
            values = [scores[name] for scores in seeds.values()]
            mean = sum(values) / len(values)
            cells.append(f"{mean:.3f} ({min(values):.3f} to {max(values):.3f})")
        table.add_row(name, *cells, f"{chance:.3f}")
    Console().print(table)


def linked_run(run: RunFolder, name: str) -> RunFolder:
    """A run folder that shares the first stages' output with `run` through relative links."""
    own = RunFolder(run.root / "ablation" / name)
    own.make()
    for folder in SHARED:
        link = own.root / folder
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(run.root / folder, own.root))
    return own
