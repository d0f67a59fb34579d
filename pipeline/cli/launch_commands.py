"""Commands about jobs: ``boxless attach | cancel | logs`` of those under way, and ``boxless
cluster-plan`` before one."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from pipeline.cli.arguments import positive_number, user_path, whole_number
from pipeline.runner.run_folder import RunError, RunFolder

Commands = argparse._SubParsersAction


def add_launch_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add them to the command line."""
    _add_attach(commands)
    _add_cancel(commands)
    _add_logs(commands)
    _add_cluster_plan(commands)


def _add_attach(commands: Commands[argparse.ArgumentParser]) -> None:
    attach = commands.add_parser(
        "attach", help="follow the output of a run's Slurm job; Ctrl-C leaves the job running"
    )
    attach.add_argument("run", type=user_path, help="a run folder")
    attach.set_defaults(command=_attach)


def _add_cancel(commands: Commands[argparse.ArgumentParser]) -> None:
    cancel = commands.add_parser(
        "cancel", help="cancel a run's Slurm jobs; pretraining saves a checkpoint first"
    )
    cancel.add_argument("run", type=user_path, help="a run folder")
    cancel.add_argument(
        "--now", action="store_true", help="cancel immediately, without a checkpoint"
    )
    cancel.set_defaults(command=_cancel)


def _add_logs(commands: Commands[argparse.ArgumentParser]) -> None:
    logs = commands.add_parser("logs", help="show the log of a rank")
    logs.add_argument("run", type=user_path, help="a run folder")
    logs.add_argument("--stage", help="stage (default: the one that wrote last)")
    logs.add_argument(
        "--rank", type=whole_number(lowest=0), default=0, metavar="N", help="rank (default: 0)"
    )
    logs.add_argument(
        "--launcher", action="store_true", help="show the launcher's log of node N instead"
    )
    logs.add_argument(
        "--lines",
        type=whole_number(lowest=1),
        default=40,
        metavar="L",
        help="number of lines (default: the last 40)",
    )
    logs.add_argument("--follow", action="store_true", help="follow until Ctrl-C")
    logs.set_defaults(command=_logs)


def _add_cluster_plan(commands: Commands[argparse.ArgumentParser]) -> None:
    plan = commands.add_parser(
        "cluster-plan",
        help="estimate time, storage and network of a large run from the rates of a small one",
    )
    plan.add_argument("run", type=user_path, help="a finished small run of the same recipe")
    plan.add_argument(
        "--pictures",
        type=whole_number(lowest=1),
        default=4_200_000,
        metavar="N",
        help="pictures (default: 4200000)",
    )
    plan.add_argument(
        "--picture-bytes",
        type=positive_number,
        metavar="B",
        help="bytes of a picture (default: as measured)",
    )
    plan.add_argument(
        "--nodes",
        type=whole_number(lowest=1),
        default=64,
        metavar="N",
        help="nodes (default: 64)",
    )
    plan.add_argument(
        "--procs-per-node",
        type=whole_number(lowest=1),
        default=8,
        metavar="P",
        help="ranks on each node (default: 8)",
    )
    plan.add_argument(
        "--epochs",
        type=positive_number,
        default=10.0,
        metavar="E",
        help="epochs of pretraining (default: 10)",
    )
    plan.add_argument(
        "--rate",
        action="append",
        default=[],
        metavar="STAGE=R",
        help="pictures a second of one rank, instead of the measured: ingest, distill, pretrain",
    )
    plan.add_argument(
        "--recovery-seconds",
        type=positive_number,
        default=120.0,
        metavar="S",
        help="from a failure to the next step; default: 120",
    )
    plan.set_defaults(command=_cluster_plan)


def _attach(args: argparse.Namespace) -> int:
    from launch.backends import slurm
    from launch.paths import JobPaths

    run = _existing(args.run)
    for stage, job_id in _active_jobs(run).items():
        print(f"{stage}: Slurm job {job_id}", flush=True)
        try:
            slurm.attach(JobPaths(run.logs(stage)), job_id)
        except KeyboardInterrupt:
            print(f"\nThe job continues; `boxless cancel {args.run}` ends it.", file=sys.stderr)
            return 0
        return 0
    print(f"No Slurm job of {args.run} is pending or running.")
    return 1


def _cancel(args: argparse.Namespace) -> int:
    from launch.backends import slurm_queue

    jobs = _active_jobs(_existing(args.run))
    for stage, job_id in jobs.items():
        (slurm_queue.kill if args.now else slurm_queue.terminate)(job_id)
        print(f"{stage}: Slurm job {job_id} was cancelled")
    if not jobs:
        print(f"No Slurm job of {args.run} is pending or running.")
    return 0 if jobs else 1


def _logs(args: argparse.Namespace) -> int:
    from launch.paths import JobPaths

    run = _existing(args.run)
    folder = run.logs(args.stage or _latest_stage(run))
    paths = JobPaths(folder)
    path = paths.launcher_log(args.rank) if args.launcher else paths.rank_log(args.rank)
    if not path.is_file():
        there = ", ".join(sorted(log.name for log in folder.glob("*.log"))) or "none"
        raise RunError(f"{path} does not exist; expected one of the logs there: {there}.")
    with path.open(encoding="utf-8", errors="replace") as file:
        print("".join(file.readlines()[-args.lines :]), end="", flush=True)
        while args.follow:
            print(file.read(), end="", flush=True)
            time.sleep(1)
    return 0


def _cluster_plan(args: argparse.Namespace) -> int:
    from pipeline.runner.cluster_plan import ClusterPlan, measure

    recipe, measured = measure(_existing(args.run))
    if args.picture_bytes is not None:
        measured = measured.with_pictures_of(args.picture_bytes)
    plan = ClusterPlan(
        measured=measured,
        num_pictures=args.pictures,
        nodes=args.nodes,
        procs_per_node=args.procs_per_node,
        epochs=args.epochs,
        micro_batch_size=recipe.pretrain.micro_batch_size,
        checkpoint_steps=recipe.pretrain.checkpoint_steps,
        keep_checkpoints=recipe.pretrain.keep_checkpoints,
        recovery_seconds=args.recovery_seconds,
        rates=dict(_rate(text) for text in args.rate),
    )
    print("\n".join(plan.lines()))
    return 0


def _rate(text: str) -> tuple[str, float]:
    stage, _, rate = text.partition("=")
    try:
        return stage, positive_number(rate)
    except argparse.ArgumentTypeError:
        raise RunError(f"--rate got {text!r}; expected STAGE=R, as in distill=120.") from None


def _active_jobs(run: RunFolder) -> dict[str, str]:
    from launch.backends import slurm_queue
    from pipeline.runner.launch_plan import submitted_jobs

    jobs = submitted_jobs(run)
    return {stage: job_id for stage, job_id in jobs.items() if slurm_queue.is_active(job_id)}


def _latest_stage(run: RunFolder) -> str:
    logs = sorted((run.root / "logs").glob("*/*.log"), key=lambda log: log.stat().st_mtime)
    if not logs:
        raise RunError(f"{run.root} has no logs yet.")
    return logs[-1].parent.name


def _existing(root: Path) -> RunFolder:
    run = RunFolder(root)
    if not run.recipe.is_file():
        raise RunError(f"{root} is not a run folder: it has no {run.recipe.name}.")
    return run
