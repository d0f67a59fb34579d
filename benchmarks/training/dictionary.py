"""The visual dictionary as SOHO released it and as ours: unused codes, perplexity, scores.

    make dictionary, or python -m benchmarks.training.dictionary [--seeds 3] [--codes 1024]
        [--out runs/dictionary] [--set pretrain.num_steps=300 ...]

Recipe soho-toy, twice: with its own settings, and with those of the released code for dictionary
and MVM (start, decay, index and value of two codebooks, padding, one mask for the whole batch, no
temperature, weight 1). The shards are made once. Everything else is the same, seeds and steps too.
Stopped and started again it continues. A code is dead that no cell took in the last 50 updates.

In the released code every code without a cell becomes zero in the first step; zeros tie, so that
about one returns in a step. The 64 codes of the recipe are all back within 30 steps; by default
there are as many here that hundreds of steps do not bring them back.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.recipe.recipe import Recipe, load_recipe
from pipeline.runner.ablation import linked_run
from pipeline.runner.launch_plan import LaunchOverrides
from pipeline.runner.run_folder import RunFolder
from pipeline.runner.run_stages import run_stages
from sharding.writing.atomic import write_json
from stages.training.monitoring.metrics import read_metrics

HERE = LaunchOverrides(launcher=None, nodes=None, procs_per_node=None)
RELEASED = (
    "student.neck.dictionary.start=random",
    "student.neck.dictionary.decay=0.4",
    "student.neck.dictionary.smoothing=1e-5",
    "student.neck.dictionary.revive_after_steps=0",
    "student.neck.dictionary.update=forward",
    "student.neck.dictionary.count_padding=true",
    "student.neck.count_captions=true",
    "student.neck.width_mask=height",
    "pretrain.mvm.weight=1.0",
    "pretrain.mvm.rule=released",
    "pretrain.mvm.probability=0.015",
    "pretrain.mvm.temperature=1.0",
    "pretrain.mvm.matched_only=false",
    "pretrain.mvm.mean_epsilon=1e-6",
)
VARIANTS: dict[str, tuple[str, ...]] = {"released": RELEASED, "ours": ()}


def main() -> None:
    """Train every variant with every seed, print the table, keep it as json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--codes", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=Path("runs/dictionary"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE")
    options = parser.parse_args()
    settings = [f"student.neck.dictionary.num_codes={options.codes}", *options.set]
    recipe = load_recipe("soho-toy", settings)
    run = RunFolder(options.out)
    run.make()
    run_stages(recipe, run, ["ingest", "teach", "distill"], HERE, dry_run=False)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for seed in range(recipe.seed, recipe.seed + options.seeds):
        for name, own in VARIANTS.items():
            variant = replace(load_recipe("soho-toy", [*settings, *own]), seed=seed)
            found[name].append(_trained(variant, linked_run(run, f"{name}-{seed}")))
    write_json(run.root / "dictionary.json", {"steps": recipe.pretrain.num_steps, "found": found})
    _show(recipe, found)


def _trained(recipe: Recipe, run: RunFolder) -> dict[str, float]:
    """Train and score a student: its last figures of the dictionary, and its scores."""
    run_stages(recipe, run, ["pretrain", "evaluate"], HERE, dry_run=False)
    lines = read_metrics(run.pretrain / "metrics.jsonl")
    figures = {
        "dead codes": lines[-1]["mvm/dead_codes"],
        "dead codes, first report": next(
            line["mvm/dead_codes"] for line in lines if "mvm/dead_codes" in line
        ),
        "perplexity": lines[-1]["mvm/perplexity"],
        "reports with a masked cell": sum("mvm/accuracy" in line for line in lines) / len(lines),
    }
    scores = json.loads((run.transfer / "evaluate" / "scores.json").read_text())
    return figures | {
        name: score["value"] for name, score in scores.items() if not name.startswith("teacher_")
    }


def _show(recipe: Recipe, found: dict[str, list[dict[str, float]]]) -> None:
    num_codes = recipe.student.neck.dictionary.num_codes  # type: ignore[union-attr]
    num_seeds = len(found["ours"])
    table = Table(
        title=f"{num_codes} codes, {recipe.pretrain.num_steps} steps, {num_seeds} seeds: "
        "mean (lowest to highest)"
    )
    for column in ("", *found):
        table.add_column(column)
    for name in found["ours"][0]:
        cells = []
        for seeds in found.values():
            values = [own[name] for own in seeds]
            mean = statistics.fmean(values)
            cells.append(f"{mean:.3g} ({min(values):.3g} to {max(values):.3g})")
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
