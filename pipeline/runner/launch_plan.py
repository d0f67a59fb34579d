"""Decides how a stage is started: which launcher, how many ranks, and the job.

Pretrain has the ranks of the recipe's ``launch``. The other stages are one process by default, here
or, where the recipe says slurm, in a job of their own; ingest and distill share their shards among
as many workers as the command line asks for, under slurm as an array of tasks.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from launch.backends import deepspeed, local, slurm, torchrun
from launch.config import LaunchConfig, LauncherName
from launch.environment import variables_of_other_launchers
from launch.job import Job, UserError
from launch.logs import LOG_FOLDER_VARIABLE
from launch.node_check import JOIN_SECONDS
from launch.paths import JobPaths
from pipeline.recipe.dataclass_values import RecipeError
from pipeline.recipe.recipe import Recipe, dump_recipe
from pipeline.runner.run_folder import RunFolder
from pipeline.runner.stages.stage_graph import StageKind
from pipeline.runner.worker import JOINED

LAUNCHERS: dict[LauncherName, ModuleType] = {
    "local": local,
    "torchrun": torchrun,
    "deepspeed": deepspeed,
    "slurm": slurm,
}


PRETRAIN_MODULES = (
    "torch",
    "deepspeed",
    "pipeline.recipe.recipe",
    "pipeline.runner.stages.entrypoints",
    "stages.pretrain.run",
)
"""What a rank of pretrain imports: all that takes long."""

_SHARED_STAGES = ("distill", "evaluate")


@dataclass(frozen=True, kw_only=True)
class LaunchOverrides:
    """What the command line says about launching; None where it says nothing."""

    launcher: LauncherName | None = None
    nodes: int | None = None
    procs_per_node: int | None = None

    def merged(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The plain values of a recipe with these laid over its ``launch``, before any check."""
        launch = values.get("launch") or {}
        if not isinstance(launch, Mapping):
            return dict(values)  # the check of the recipe says what is wrong with it
        given = {
            "launcher": self.launcher,
            "nodes": self.nodes,
            "procs_per_node": self.procs_per_node,
        }
        merged = {**launch, **{key: value for key, value in given.items() if value is not None}}
        if self.launcher == "local":
            merged |= {"nodes": self.nodes or 1, "procs_per_node": self.procs_per_node or 1}
        several = merged.get("nodes", 1) != 1 or merged.get("procs_per_node", 1) != 1
        if self.launcher is None and merged.get("launcher", "local") == "local" and several:
            merged["launcher"] = "torchrun"
        return {**values, "launch": merged}


def launch_config(
    kind: StageKind, recipe: Recipe, overrides: LaunchOverrides, *, alone: bool
) -> LaunchConfig:
    """How ``kind`` is launched; ``alone`` when it was asked for by its own name.

    Pretrain takes all ranks of the recipe, distill and evaluate its processes of one node, as what
    they write does not depend on how many there are. Beyond that, a stage is shared when asked.

    RecipeError where the launcher cannot start so many ranks.
    """
    given = recipe.launch
    if kind.name == "pretrain":
        return given
    launcher = overrides.launcher or ("slurm" if given.launcher == "slurm" else "local")
    is_shared = kind.name in _SHARED_STAGES and overrides.launcher != "local"
    own = given.procs_per_node if is_shared else 1
    nodes, procs_per_node = overrides.nodes or 1, overrides.procs_per_node or own
    if not alone and launcher == "torchrun":
        nodes = 1  # the other nodes wait for pretrain; they may come with --join
    if nodes * procs_per_node == 1 and launcher != "slurm":
        launcher = "local" if overrides.launcher is None or not alone else launcher
    elif launcher == "local" and overrides.launcher is None:
        launcher = "torchrun"
    try:
        return replace(
            given,
            launcher=launcher,
            nodes=nodes,
            min_nodes=None,
            procs_per_node=procs_per_node,
            node_rank=given.node_rank if nodes > 1 else 0,
        )
    except ValueError as error:
        raise RecipeError(f"launch.{error}") from error


def launch_stage(kind: StageKind, recipe: Recipe, run: RunFolder, config: LaunchConfig) -> None:
    """Run the stage's ranks to the end; raises as launch.job says."""
    LAUNCHERS[config.launcher].run(_job(kind, recipe, run, config), config)


def launch_joined(kind: StageKind, recipe: Recipe, run: RunFolder, config: LaunchConfig) -> None:
    """Run ranks that no other command waits for: beside those of a stage under way,
    with logs of their own. Raises as launch.job says."""
    job = _joined(_job(kind, recipe, run, config))
    LAUNCHERS[config.launcher].run(job, config)


def command_text(
    kind: StageKind,
    recipe: Recipe,
    run: RunFolder,
    config: LaunchConfig,
    *,
    is_joined: bool = False,
) -> str:
    """What ``launch_stage``, or ``launch_joined``, would run, as text for a shell; for Slurm, the
    script as well."""
    job = _job(kind, recipe, run, config)
    job = _joined(job) if is_joined else job
    command = shlex.join(LAUNCHERS[config.launcher].command(job, config))
    if config.launcher == "slurm":
        place = shlex.quote(str(job.log_folder))
        return f"{slurm.script(job, config)}\n# {job.paths.script.name} in {place}: {command}"
    env = job.env | {LOG_FOLDER_VARIABLE: str(job.log_folder)}
    if config.launcher == "torchrun" and config.restarts:
        env = torchrun.preload_variables(job) | env
    words = [f"-u {name}" for name in variables_of_other_launchers(os.environ)]
    words += [f"{name}={shlex.quote(value)}" for name, value in env.items()]
    return " ".join(["env", *words, command])


def check_launch(recipe: Recipe, run: RunFolder) -> None:
    """Start the ranks of ``recipe.launch`` and let them compare what they see (launch.node_check).

    Raises as launch.job says; UserError has a line for each fault.
    """
    root = run.root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    # Every node has a rank of its own; all else is to be the same.
    same = replace(recipe, launch=replace(recipe.launch, node_rank=0))
    job = Job(
        title=f"{recipe.name}-check",
        module="launch.node_check",
        args=(str(root), hashlib.sha256(dump_recipe(same).encode()).hexdigest()),
        log_folder=RunFolder(root).logs("check"),
        env=_environment(recipe.launch) | recipe.launch.env,
        node_rank=recipe.launch.node_rank,
        join_seconds=JOIN_SECONDS,
    )
    LAUNCHERS[recipe.launch.launcher].run(job, recipe.launch)


def submitted_jobs(run: RunFolder) -> dict[str, str]:
    """{stage: the number of its Slurm job} of the stages that have been submitted as one."""
    found = {}
    for folder in sorted((run.root / "logs").glob("*/")):
        job_id = slurm.submitted_job(JobPaths(folder))
        if job_id is not None:
            found[folder.name] = job_id
    return found


def has_active_job(kind: StageKind, run: RunFolder) -> bool:
    """Whether a Slurm job of the stage is pending or running."""
    return slurm.has_active_job(JobPaths(run.logs(kind.name)))


def _job(kind: StageKind, recipe: Recipe, run: RunFolder, config: LaunchConfig) -> Job:
    root = run.root.resolve()
    try:
        return Job(
            title=f"{recipe.name}-{kind.name}",
            module="pipeline.runner.worker",
            args=(kind.name, str(root)),
            log_folder=RunFolder(root).logs(kind.name),
            env=_environment(config) | config.env,
            node_rank=config.node_rank,
            is_elastic=kind.is_shards,
            can_restart=kind.name == "pretrain",
            preload=PRETRAIN_MODULES if kind.name == "pretrain" else (),
        )
    except UserError as error:
        raise RecipeError(str(error)) from error


def _joined(job: Job) -> Job:
    name = f"joined-{socket.gethostname()}-{os.getpid()}"
    return replace(job, args=(*job.args, JOINED), log_folder=job.log_folder / name)


def _environment(config: LaunchConfig) -> dict[str, str]:
    """One rank for itself takes PyTorch's own number of threads; several share the cores.

    Threads wait for each other asleep, not spinning: it costs nothing on idle cores, and where
    another program has one of them, spinning makes a stage several times slower.
    """
    waiting = {} if "OMP_WAIT_POLICY" in os.environ else {"OMP_WAIT_POLICY": "PASSIVE"}
    if config.procs_per_node == 1 or "OMP_NUM_THREADS" in os.environ:
        return waiting
    if config.launcher == "slurm":
        num_threads = config.cpus_per_proc
    else:
        num_cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        num_threads = max(1, num_cores // config.procs_per_node)
    return {**waiting, "OMP_NUM_THREADS": str(num_threads)}
