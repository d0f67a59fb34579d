"""``boxless retry RUN``: runs again only what failed in the stages that write shards.

A shard with failures is requested again; its writer takes over what was intact, byte for byte
(``sharding.writing.previous_shard``), so the result is what a run without the failures would have
left. What was asked for stays asked until it is done: killed half-way, the same command continues.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console

from pipeline.recipe.recipe import Recipe, load_recipe
from pipeline.runner.launch_plan import LaunchOverrides
from pipeline.runner.run_folder import RunError, RunFolder
from pipeline.runner.run_stages import plan_stage, run_stage
from pipeline.runner.stages.stage_graph import StageKind, stages_of
from pipeline.runner.stages.state import read_done, read_started
from sharding.coordination.work_queue import request_rewrites
from sharding.format.manifest_summary import read_manifest_summaries


@dataclass(frozen=True, kw_only=True)
class Retried:
    """How many inputs of a stage had failed before its retry, and how many still do."""

    stage: str
    num_before: int
    num_after: int


def retry_failed(
    run: RunFolder, launch_overrides: LaunchOverrides, *, stage: str | None = None
) -> list[Retried]:
    """Retry the failures of ``stage``, or of every stage that has some, with the run's own recipe.

    Distill follows where ingest gave it something new. Raises RunError where there is no such
    stage, and as pipeline.runner.run_stages.
    """
    if not run.recipe.is_file():
        raise RunError(f"{run.root} is not a run folder: it has no {run.recipe.name}.")
    recipe = load_recipe(run.recipe)
    retried: list[Retried] = []
    kinds = [kind for kind in stages_of(recipe) if kind.is_shards]
    if stage is not None and stage not in [kind.name for kind in kinds]:
        names = " and ".join(kind.name for kind in kinds)
        raise RunError(f"stage is {stage}; expected one that makes shards: {names}.")
    with run.locked_for_command():
        for kind in kinds:
            if stage in (None, kind.name):
                retried += _retry_stage(recipe, run, kind, launch_overrides, follows=bool(retried))
    return retried


def lines(retried: Sequence[Retried]) -> list[str]:
    """What came of it, for people."""
    return [
        f"{one.stage}: {one.num_before} had failed, {one.num_after} still do." for one in retried
    ] or ["Nothing had failed."]


def _retry_stage(
    recipe: Recipe,
    run: RunFolder,
    kind: StageKind,
    launch_overrides: LaunchOverrides,
    *,
    follows: bool,
) -> list[Retried]:
    """One entry, or none where there was nothing to do. ``follows``: a stage before was retried."""
    was_done = read_done(run, kind) is not None
    if not was_done and read_started(run, kind) is None:
        return []
    failed = _failed(run, kind)
    plan = plan_stage(run, recipe, kind, look_outside=True)
    if not failed and not (follows and was_done and plan.action == "redo"):
        return []
    request_rewrites(kind.folder(run), failed)
    num_before = sum(failed.values())
    why = f"{num_before} failed in {len(failed)} shards" if failed else plan.why
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]▶ {kind.name}[/]: retry, {why}")
    run_stage(recipe, run, replace(plan, action="continue"), launch_overrides, console, alone=True)
    num_after = sum(_failed(run, kind).values())
    return [Retried(stage=kind.name, num_before=num_before, num_after=num_after)]


def _failed(run: RunFolder, kind: StageKind) -> dict[str, int]:
    """{tar: number of failed inputs} of the shards that have some."""
    found = read_manifest_summaries(kind.folder(run))
    return {tar: head.num_failed for tar, head in found.items() if head.num_failed}
