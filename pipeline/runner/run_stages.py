"""Runs the stages of a recipe: decides which are due and why, starts them, and records their
outputs.

The decision is ``plan_stage``, which only looks; ``run_stages`` acts on it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape

from launch.job import LaunchError, Stopped, UserError
from pipeline import OUTPUT_VERSION
from pipeline.recipe.recipe import Recipe, RecipeError, dump_recipe
from pipeline.runner.backups import back_up
from pipeline.runner.launch_plan import (
    LaunchOverrides,
    command_text,
    has_active_job,
    launch_config,
    launch_joined,
    launch_stage,
    submitted_jobs,
)
from pipeline.runner.run_folder import RunError, RunFolder
from pipeline.runner.stages.external_inputs import check_published, external_inputs
from pipeline.runner.stages.figures import figures_of, in_words
from pipeline.runner.stages.stage_graph import StageKind, stages_of
from pipeline.runner.stages.state import (
    StageRecord,
    faults,
    finished_record,
    read_done,
    read_started,
    write_done,
    write_started,
)
from pipeline.units import seconds_in_words
from sharding.format.catalog import read_catalog
from sharding.writing.atomic import write_text

Action = Literal["skip", "start", "continue", "redo"]
_UNKNOWN = "not made yet"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do about a stage, why, and all that will shape its output."""

    kind: StageKind
    action: Action
    why: str
    shaped_by: dict[str, Any]

    @property
    def backs_up(self) -> bool:
        """Whether what is there now is kept under another name."""
        return self.action == "redo" and self.kind.is_expensive


def plan_stage(
    run: RunFolder,
    recipe: Recipe,
    kind: StageKind,
    *,
    due: Sequence[str] = (),
    look_outside: bool = False,
) -> Plan:
    """What to do about ``kind``; ``due`` names stages that will run before it.

    Whether files outside the run folder changed (the corpus, a teacher that was given) is only
    asked with ``look_outside``: SourceError says where the corpus is not what the recipe says.
    """
    done, started = read_done(run, kind), read_started(run, kind)
    last = done or started
    shaped_by = _shaped_by(run, recipe, kind, due)
    if look_outside:
        shaped_by["inputs"] |= external_inputs(recipe, kind)
    elif last is not None:
        others = last.shaped_by["inputs"].items()
        shaped_by["inputs"] |= {name: c for name, c in others if name not in kind.inputs}

    def plan(action: Action, why: str) -> Plan:
        return Plan(kind=kind, action=action, why=why, shaped_by=shaped_by)

    if last is None:
        return plan("start", "not started yet")
    recorded = kind.recorded_parts(last.shaped_by["recipe"], recipe)
    before = {**last.shaped_by, "recipe": recorded}
    if before != shaped_by:
        return plan("redo", _changes(before, shaped_by))
    if done is None:
        return plan("continue", "stopped part-way")
    wrong = faults(run, kind, done)
    if wrong:
        return plan("continue", "; ".join(wrong[:3]) + (" ..." if wrong[3:] else ""))
    return plan("skip", "complete, and nothing that shapes it changed")


def run_stages(
    recipe: Recipe,
    run: RunFolder,
    names: Sequence[str],
    launch_overrides: LaunchOverrides,
    *,
    dry_run: bool,
) -> None:
    """Run the stages called ``names``, those that are due, in order.

    Raises RunError when a stage's inputs are missing, UserError or LaunchError when it fails,
    ValueError where published weights that the student starts from cannot be loaded, and Stopped
    after SIGTERM or SIGINT.
    """
    console = Console(highlight=False, soft_wrap=True)
    kinds = [kind for kind in stages_of(recipe) if kind.name in names]
    if "finetune" in names and recipe.finetune.task is None:
        console.print("finetune: skipped, as the recipe names no task (finetune.task).")
    if "teach" in names and recipe.distill.teacher != "run":
        console.print(f"teach: skipped, as distill uses {recipe.distill.teacher}.")
    if dry_run:
        _show_plans(recipe, run, kinds, launch_overrides, console)
        return
    if any(k.name == "pretrain" and plan_stage(run, recipe, k).action != "skip" for k in kinds):
        check_published(recipe)
    run.make()
    is_followed = _check_active_jobs(recipe, run, names, launch_overrides)
    with run.locked_for_command(wait_for_ranks=not is_followed):
        write_text(run.recipe, dump_recipe(recipe))
        for kind in kinds:
            _check_inputs(run, recipe, kind, console, alone=len(names) == 1)
            if kind.name == "evaluate" and not _has_pictures(run, recipe):
                split = recipe.evaluate.split
                console.print(
                    f"[yellow]evaluate[/] skipped: no picture is in the split {split}; a larger "
                    "ingest.heldout_fraction holds some out, and ingest.splits names fixed ones."
                )
                continue
            plan = plan_stage(run, recipe, kind, look_outside=True)
            if plan.action == "skip":
                console.print(f"[green]✓[/] [bold]{kind.name}[/] skipped: {escape(plan.why)}")
                continue
            why = "" if plan.action == "start" else f": {plan.action}, {plan.why}"
            console.print(f"[bold]▶ {kind.name}[/]{escape(why)}")
            run_stage(recipe, run, plan, launch_overrides, console, alone=len(names) == 1)


def _has_pictures(run: RunFolder, recipe: Recipe) -> bool:
    """Whether the split that evaluate scores has a picture."""
    split = recipe.evaluate.split_of_shards
    shards = read_catalog(run.images).shards
    return any(shard.num_ok for shard in shards if shard.split == split)


def _check_active_jobs(
    recipe: Recipe, run: RunFolder, names: Sequence[str], launch_overrides: LaunchOverrides
) -> bool:
    """Whether a Slurm job of an earlier command is pending or running here, to be followed.
    RunError when it cannot be: another stage's, or one of other settings."""
    for kind in stages_of(recipe):
        if not has_active_job(kind, run):
            continue
        plan = plan_stage(run, recipe, kind)
        config = launch_config(kind, recipe, launch_overrides, alone=len(names) == 1)
        if kind.name in names and plan.action == "continue" and config.launcher == "slurm":
            return True
        raise RunError(
            f"the Slurm job {submitted_jobs(run)[kind.name]} of {kind.name} is pending or running in "
            f"{run.root}, and this command is not the one that started it: {plan.why}. Wait for it "
            f"(`boxless attach {run.root}`), end it (`boxless cancel {run.root}`), or give this "
            "one a folder of its own with --run DIR."
        )
    return False


def join(
    recipe: Recipe,
    run: RunFolder,
    names: Sequence[str],
    launch_overrides: LaunchOverrides,
    *,
    dry_run: bool = False,
) -> None:
    """Add this node's ranks to the one stage of ``names``, which the first node runs (torchrun
    on several nodes, which share the run folder), or print the command. RecipeError for a whole
    run."""
    if len(names) > 1:
        raise RecipeError(
            f"launch.node_rank is {recipe.launch.node_rank}: only the first node runs all stages; "
            "start `boxless pretrain` here, for the stage that nodes share."
        )
    (kind,) = (kind for kind in stages_of(recipe) if kind.name == names[0])
    config = launch_config(kind, recipe, launch_overrides, alone=True)
    if dry_run:
        print(command_text(kind, recipe, run, config), flush=True)
        return
    launch_stage(kind, recipe, run, config)


def join_work(
    recipe: Recipe,
    run: RunFolder,
    names: Sequence[str],
    launch_overrides: LaunchOverrides,
    *,
    dry_run: bool = False,
) -> None:
    """Add workers to the one stage of ``names``, which another command runs, perhaps on another
    machine that sees the same run folder. They share its shards until all are done. ``dry_run``
    prints the command.

    RecipeError for a stage that is not made of shards, RunError unless it is under way there with
    just the settings of this recipe.
    """
    kinds = [kind for kind in stages_of(recipe) if kind.name in names]
    if len(kinds) != 1 or not kinds[0].is_shards:
        raise RecipeError("--join adds workers to a stage that makes shards: ingest or distill.")
    (kind,) = kinds
    plan = plan_stage(run, recipe, kind, look_outside=True)
    if plan.action == "skip":
        print(f"{kind.name} is complete: there is nothing to join.", flush=True)
        return
    if plan.action != "continue" or read_started(run, kind) is None:
        raise RunError(
            f"{kind.name} is not under way in {run.root} as this recipe says: {plan.why}. Start "
            f"`boxless {kind.name}` there first, and join with the same recipe and settings."
        )
    config = launch_config(kind, recipe, launch_overrides, alone=True)
    if dry_run:
        print(command_text(kind, recipe, run, config, is_joined=True), flush=True)
        return
    launch_joined(kind, recipe, run, config)


def run_stage(
    recipe: Recipe,
    run: RunFolder,
    plan: Plan,
    launch_overrides: LaunchOverrides,
    console: Console,
    *,
    alone: bool,
) -> None:
    """Run one stage as planned, to its end, and write its record. Raises as ``run_stages``."""
    kind = plan.kind
    config = launch_config(kind, recipe, launch_overrides, alone=alone)
    if plan.backs_up:
        for line in back_up(run, kind):
            console.print(f"  {line}")
    before = read_started(run, kind) if plan.action == "continue" else None
    started = StageRecord(
        stage=kind.name, shaped_by=plan.shaped_by, seconds=before.seconds if before else 0.0
    )
    write_started(run, kind, started)
    began = time.monotonic()
    try:
        launch_stage(kind, recipe, run, config)
    except (LaunchError, Stopped, UserError):
        # A killed orchestrator does not come by here; its seconds are the only thing that is lost.
        write_started(run, kind, _later(started, began))
        raise
    try:
        record = finished_record(run, kind, _later(started, began), figures_of(run, kind))
    except FileNotFoundError as error:
        raise RunError(f"{error}; the logs are in {run.logs(kind.name)}") from error
    write_done(run, kind, record)
    words = in_words(record.figures)
    console.print(
        f"[green]✓[/] [bold]{kind.name}[/] {seconds_in_words(record.seconds)}"
        + (f": {escape(words)}" if words else "")
    )


def _later(started: StageRecord, began: float) -> StageRecord:
    return replace(started, seconds=round(started.seconds + time.monotonic() - began, 3))


def _show_plans(
    recipe: Recipe,
    run: RunFolder,
    kinds: list[StageKind],
    launch_overrides: LaunchOverrides,
    console: Console,
) -> None:
    due: list[str] = []
    for kind in kinds:
        plan = plan_stage(run, recipe, kind, due=due, look_outside=True)
        console.print(f"[bold]{kind.name}[/]: {plan.action}: {escape(plan.why)}")
        if plan.action == "skip":
            continue
        due.append(kind.name)
        if plan.backs_up:
            console.print(f"  backs up {', '.join(kind.folders)}")
        config = launch_config(kind, recipe, launch_overrides, alone=len(kinds) == 1)
        text = command_text(kind, recipe, run, config)
        console.print(text, markup=False)


def _check_inputs(
    run: RunFolder, recipe: Recipe, kind: StageKind, console: Console, *, alone: bool
) -> None:
    """RunError unless every input is complete; prints a note where one has other settings."""
    for other in stages_of(recipe):
        if other.name not in kind.inputs:
            continue
        if read_done(run, other) is None:
            raise RunError(
                f"{kind.name} reads what {other.name} leaves in {other.folder(run)}, and that is "
                f"not complete; `boxless {other.name}` with the same recipe and --run makes it, "
                "and `boxless run` makes all in order."
            )
        plan = plan_stage(run, recipe, other) if alone else None
        if plan is not None and plan.action != "skip":
            note = f"{other.name} is not as this recipe says: {plan.why}"
            console.print(f"[yellow]note[/]: {escape(note)}")


def _shaped_by(
    run: RunFolder, recipe: Recipe, kind: StageKind, due: Sequence[str]
) -> dict[str, Any]:
    inputs = {}
    for other in stages_of(recipe):
        if other.name in kind.inputs:
            done = None if other.name in due else read_done(run, other)
            inputs[other.name] = done.content if done else _UNKNOWN
    return {"recipe": kind.recipe_parts(recipe), "inputs": inputs, "boxless": OUTPUT_VERSION}


def _changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What changed, in words: ``pretrain.num_steps was 100, is 200``; the first few."""
    changes = [
        f"its input from {name} " + ("will change" if content == _UNKNOWN else "changed")
        for name, content in new["inputs"].items()
        if old["inputs"].get(name) != content
    ]
    before, after = _leaves(old["recipe"]), _leaves(new["recipe"])
    for path in sorted(before.keys() | after.keys()):
        was, now = before.get(path, "absent"), after.get(path, "absent")
        if was != now:
            changes.append(f"{path} was {was}, is {now}")
    if old["boxless"] != new["boxless"]:
        changes.append(f"boxless was {old['boxless']}, is {new['boxless']}")
    return "; ".join(changes[:4]) + (f"; and {len(changes) - 4} more" if changes[4:] else "")


def _leaves(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{above}{key}"
        leaves |= _leaves(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return leaves
