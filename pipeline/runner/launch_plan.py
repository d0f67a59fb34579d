"""How a stage is started: which launcher with how many ranks, and the job that it is given.

By default only pretrain has the ranks of the recipe's ``launch``; the other stages are one process,
here or, where the recipe says slurm, in a job of their own. What the command line asks for lies
over the recipe; stages that share out shards (ingest, distill) have several ranks only when asked
there, and more join from other machines (``join``).
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
from dataclasses import dataclass, replace
from types import ModuleType

from launch.backends import deepspeed, local, slurm, torchrun
from launch.config import LaunchConfig, LauncherName
from launch.job import Job
from launch.logs import LOG_FOLDER_VARIABLE
from pipeline.recipe.dataclass_values import RecipeError
from pipeline.recipe.recipe import Recipe
from pipeline.runner.run_folder import RunFolder
from pipeline.runner.stages import StageKind
from pipeline.runner.worker import JOINED

LAUNCHERS: dict[LauncherName, ModuleType] = {
    "local": local,
    "torchrun": torchrun,
    "deepspeed": deepspeed,
    "slurm": slurm,
}


@dataclass(frozen=True, kw_only=True)
class LaunchOverrides:
    """What the command line says about launching; None where it says nothing."""

    launcher: LauncherName | None = None
    nodes: int | None = None
    procs_per_node: int | None = None


def launch_config(
    kind: StageKind, recipe: Recipe, asked: LaunchOverrides, *, alone: bool
) -> LaunchConfig:
    """How ``kind`` is launched; ``alone`` when it was asked for by its own name.

    RecipeError when several ranks are asked for a stage that cannot share its work.
    """
    given, is_pretrain = recipe.launch, kind.name == "pretrain"
    if not alone and not is_pretrain:
        by_slurm = (asked.launcher or given.launcher) == "slurm"
        asked = LaunchOverrides(launcher="slurm" if by_slurm else "local")
    default = given.procs_per_node if is_pretrain and asked.launcher != "local" else 1
    procs_per_node = asked.procs_per_node or default
    default = given.nodes if is_pretrain and asked.launcher != "local" else 1
    nodes = asked.nodes or default
    if nodes * procs_per_node > 1 and not kind.takes_ranks:
        raise RecipeError(
            f"{kind.name} is one process, got {nodes} nodes of {procs_per_node}; only ingest, "
            "distill and pretrain take --nodes and --procs-per-node."
        )
    launcher = asked.launcher or given.launcher
    if asked.launcher is None and launcher != "slurm" and not is_pretrain:
        launcher = "local"
    if asked.launcher is None and launcher == "local" and nodes * procs_per_node > 1:
        launcher = "torchrun"
    try:
        return replace(
            given,
            launcher=launcher,
            nodes=nodes,
            procs_per_node=procs_per_node,
            node_rank=given.node_rank if nodes > 1 else 0,
        )
    except ValueError as error:
        raise RecipeError(f"launch.{error}") from error


def launch_stage(kind: StageKind, recipe: Recipe, run: RunFolder, config: LaunchConfig) -> None:
    """Run the stage's ranks to the end; raises as launch.job says."""
    LAUNCHERS[config.launcher].run(_job(kind, recipe, run, config), config)


def launch_joined(kind: StageKind, recipe: Recipe, run: RunFolder, config: LaunchConfig) -> None:
    """Run ranks that others conduct no more than they know of: beside those of a stage under way,
    with logs of their own. Raises as launch.job says."""
    job = _job(kind, recipe, run, config)
    name = f"joined-{socket.gethostname()}-{os.getpid()}"
    job = replace(job, args=(*job.args, JOINED), log_folder=job.log_folder / name)
    LAUNCHERS[config.launcher].run(job, config)


def command_text(kind: StageKind, recipe: Recipe, run: RunFolder, config: LaunchConfig) -> str:
    """What ``launch_stage`` would run, as text for a shell; for Slurm, the script as well."""
    job = _job(kind, recipe, run, config)
    command = shlex.join(LAUNCHERS[config.launcher].command(job, config))
    if config.launcher == "slurm":
        return f"{slurm.script(job, config)}\n# {command}"
    env = job.env | {LOG_FOLDER_VARIABLE: str(job.log_folder)}
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in env.items()), command])


def _job(kind: StageKind, recipe: Recipe, run: RunFolder, config: LaunchConfig) -> Job:
    root = run.root.resolve()
    return Job(
        title=f"{recipe.name}-{kind.name}",
        module="pipeline.runner.worker",
        args=(kind.name, str(root)),
        log_folder=RunFolder(root).logs(kind.name),
        env=_environment(config),
        node_rank=config.node_rank,
    )


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
