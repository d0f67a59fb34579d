"""``boxless``, the only command line: stages of a recipe, whole runs, status and reports.

Exit status: 0 success; 1 a fault found (verify, doctor) or a stage that failed; 2 asked for
something that cannot be; 130 and 143 stopped by Ctrl-C and SIGTERM, to be continued by the same
command.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from boxless.errors import BoxlessError
from launch.job import LaunchError, Stopped
from pipeline import __version__
from pipeline.cli.arguments import add_set_option, user_path, whole_number
from pipeline.cli.inference_commands import add_inference_commands
from pipeline.cli.launch_commands import add_launch_commands
from pipeline.cli.recipe_command import add_recipe_command
from pipeline.cli.renamed import plain_warnings, with_new_names
from pipeline.cli.shard_commands import add_shard_commands
from pipeline.cli.sizing import add_sizing_command
from pipeline.cli.student_commands import add_student_commands
from pipeline.cli.teacher_commands import add_teacher_commands
from pipeline.runner.error_messages import bug_report, error_message, is_for_the_user
from pipeline.runner.run_folder import RunFolder
from pipeline.runner.standard_streams import (
    flush_output,
    open_closed_streams,
    replace_unencodable,
)
from sharding.coordination.fatal_errors import is_device_error

if TYPE_CHECKING:
    from pipeline.recipe.recipe import Recipe

STAGES = {
    "ingest": "raw corpora -> image shards",
    "teach": "image shards with boxes -> a Faster R-CNN teacher",
    "distill": "image shards -> object shards, labelled by the teacher",
    "pretrain": "object shards -> student",
    "finetune": "student + task data -> task scores",
    "evaluate": "student on held-out pictures -> scores, each with its chance level",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors meant for the user are shown as a message,
    all others with their traceback."""
    open_closed_streams()
    replace_unencodable()
    given = with_new_names(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            args = command_line_parser().parse_args(given)
            with plain_warnings():
                return args.command(args)
        finally:  # of --help, too, which leaves by SystemExit
            flush_output()
    except (KeyboardInterrupt, Stopped) as error:
        number = error.signal_number if isinstance(error, Stopped) else signal.SIGINT
        print("\nStopped. Run the same command to continue.", file=sys.stderr)
        return 128 + number
    except LaunchError as error:
        _show_error(error.state, f"{error.tail}\n\nThe full log: {error.log}")
        return 1
    except BrokenPipeError:  # as in `boxless status | head`
        sys.stderr.close()
        return 1
    except (BoxlessError, OSError) as error:
        _show_error(error_message(error))
        return 2
    except Exception as error:
        if is_for_the_user(error):
            _show_error(error_message(error))
            return 2
        if is_device_error(error):
            _show_error(error_message(error), "".join(traceback.format_exception(error)))
            return 1
        print(bug_report(error), file=sys.stderr)
        return 1


def _show_error(message: str, details: str = "") -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    console = Console(stderr=True)
    if details:
        console.print(Text(details), soft_wrap=True)
    if console.is_terminal:
        console.print(Panel(Text(message), border_style="red", title="boxless", title_align="left"))
    else:  # a frame would break lines that a log is searched for
        print(f"boxless: error: {message}", file=sys.stderr)


def _run_stages(args: argparse.Namespace) -> int:
    from pipeline.recipe.recipe import load_recipe
    from pipeline.runner.launch_plan import LaunchOverrides
    from pipeline.runner.run_stages import join, join_work, run_stages

    launch_overrides = LaunchOverrides(
        launcher=args.launcher, nodes=args.nodes, procs_per_node=args.procs_per_node
    )
    overrides = [*args.set, *_evaluate_overrides(args)]
    recipe = load_recipe(args.recipe, overrides, merge=launch_overrides.merged)
    if _takes_all_tasks(args, recipe):
        recipe = load_recipe(
            args.recipe, [*overrides, "finetune.task=all"], merge=launch_overrides.merged
        )
    run = RunFolder(args.run or Path("runs") / recipe.name)
    if args.allow_code:
        os.environ["BOXLESS_ALLOW_CODE"] = "1"  # for the workers, which have this one's environment
    if args.join:
        join_work(recipe, run, args.stages, launch_overrides, dry_run=args.dry_run)
        return 0
    if recipe.launch.node_rank > 0:
        join(recipe, run, args.stages, launch_overrides, dry_run=args.dry_run)
        return 0
    run_stages(recipe, run, args.stages, launch_overrides, dry_run=args.dry_run)
    if args.reports and not args.dry_run:
        return _report(argparse.Namespace(run=run.root, out=None))
    return 0


def _takes_all_tasks(args: argparse.Namespace, recipe: Recipe) -> bool:
    """Cut the stages of `run --to`. Whether finetuning was asked for by name where the recipe names
    no task and its pictures have the annotations that the files of every task are made of."""
    if getattr(args, "to", None):
        args.stages = args.stages[: args.stages.index(args.to) + 1]
    is_last = args.stages[-1] == "finetune"
    return is_last and recipe.finetune.task is None and recipe.ingest.source == "toy"


def _status(args: argparse.Namespace) -> int:
    from pipeline.runner.status.status import show_status

    show_status(RunFolder(args.run))
    return 0


def _retry(args: argparse.Namespace) -> int:
    from pipeline.runner.launch_plan import LaunchOverrides
    from pipeline.runner.retry import lines, retry_failed

    print("\n".join(lines(retry_failed(RunFolder(args.run), LaunchOverrides(), stage=args.stage))))
    return 0


def _report(args: argparse.Namespace) -> int:
    from pipeline.pages.report.page import write_report

    page = write_report(RunFolder(args.run), args.out)
    print(f"Report: {page}")
    return 0


def _ablation(args: argparse.Namespace) -> int:
    from pipeline.recipe.recipe import load_recipe
    from pipeline.runner.ablation import VARIANTS, ablate

    recipe = load_recipe(args.recipe, args.set)
    run = RunFolder(args.run or Path("runs") / recipe.name)
    ablate(recipe, run, num_seeds=args.seeds, only=args.only or VARIANTS)
    return 0 if args.only else _report(argparse.Namespace(run=run.root, out=None))


def _doctor(args: argparse.Namespace) -> int:
    if args.launch is not None:
        return _check_launch(args)
    from pipeline.cli.doctor import examine

    return examine(as_json=args.json)


def _check_launch(args: argparse.Namespace) -> int:
    from pipeline.recipe.recipe import load_recipe
    from pipeline.runner.launch_plan import LaunchOverrides, check_launch

    overrides = LaunchOverrides(
        launcher=args.launcher, nodes=args.nodes, procs_per_node=args.procs_per_node
    )
    recipe = load_recipe(args.launch, args.set, merge=overrides.merged)
    check_launch(recipe, RunFolder(args.run or Path("runs") / recipe.name))
    print("All ranks connected; no fault found.")
    return 0


def command_line_parser() -> argparse.ArgumentParser:
    """The parser of all commands; docs/generate/cli_reference.py makes the site's page from it."""
    parser = argparse.ArgumentParser(
        prog="boxless",
        description="Pretrain vision-language models end to end, with object knowledge distilled "
        "offline from a detector.",
    )
    parser.add_argument("--version", action="version", version=f"boxless {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for stage, text in STAGES.items():
        _add_recipe_command(commands, stage, text, stages=[stage])
    whole = "run all stages in order, skip those complete and unchanged, and write the report"
    _add_recipe_command(commands, "run", whole, stages=list(STAGES))
    commands.choices["run"].add_argument(
        "--to",
        choices=list(STAGES),
        metavar="STAGE",
        help="the last stage; `finetune` on a recipe of toy data that names no task trains all "
        "of them, beside the same network without pretraining",
    )
    _add_looking_commands(commands)
    add_recipe_command(commands)
    add_launch_commands(commands)
    add_shard_commands(commands)
    add_teacher_commands(commands)
    add_student_commands(commands)
    add_inference_commands(commands)
    add_sizing_command(commands)
    _add_evaluate_options(commands.choices["evaluate"])
    return parser


def _add_evaluate_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--student",
        type=user_path,
        metavar="DIR",
        help="score this student, of any run, on the recipe's pictures (runs ingest if needed)",
    )
    command.add_argument(
        "--split",
        choices=["dev", "val", "heldout", "test", "train"],
        help="split to score (default: heldout)",
    )


def _evaluate_overrides(args: argparse.Namespace) -> list[str]:
    """What `evaluate`'s own options mean as values of the recipe."""
    given = {name: getattr(args, name, None) for name in ("student", "split")}
    if given["student"] is not None:
        if not (given["student"] / "config.json").is_file():
            raise BoxlessError(
                f"--student is {given['student']}, with no config.json in it; expected the folder "
                "of a student, as RUN/student"
            )
        args.stages = ["ingest", "evaluate"]
        given["student"] = given["student"].absolute()
    return [
        f"evaluate.{name}={json.dumps(str(value))}"
        for name, value in given.items()
        if value is not None
    ]


def _add_recipe_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    text: str,
    *,
    stages: list[str],
) -> None:
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(command=_run_stages, stages=stages, reports=name == "run")
    _add_recipe(command)
    _add_launch_options(command)
    command.add_argument(
        "--join",
        action="store_true",
        help="add workers to an ingest or distill that another command started in the run folder",
    )
    command.add_argument(
        "--allow-code",
        action="store_true",
        help="allow a recipe to run a Python file as detectron2's config",
    )
    command.add_argument(
        "--dry-run", action="store_true", help="print what would run and why, and run nothing"
    )


def _add_launch_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--launcher",
        choices=["local", "torchrun", "deepspeed", "slurm"],
        help="what starts the ranks (default: launch.launcher of the recipe)",
    )
    command.add_argument(
        "--nodes", type=whole_number(lowest=1), metavar="N", help="number of nodes"
    )
    command.add_argument(
        "--procs-per-node", type=whole_number(lowest=1), metavar="P", help="ranks on each node"
    )


def _add_recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", help="a built-in recipe's name, or a YAML file")
    _add_run_options(command)


def _add_run_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--run",
        type=user_path,
        metavar="DIR",
        help="the run folder (default: runs/NAME of the recipe)",
    )
    add_set_option(command)


def _add_looking_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    status = commands.add_parser("status", help="show the progress of each stage of a run")
    status.add_argument("run", type=user_path, help="a run folder")
    status.set_defaults(command=_status)

    retry = commands.add_parser(
        "retry", help="process again the inputs that failed in a run's shards, and only those"
    )
    retry.add_argument("run", type=user_path, help="a run folder")
    retry.add_argument(
        "--stage",
        choices=["ingest", "distill"],
        help="only this stage (default: every stage that has failures)",
    )
    retry.set_defaults(command=_retry)

    report = commands.add_parser("report", help="write a run's report/index.html")
    report.add_argument("run", type=user_path, help="a run folder")
    report.add_argument(
        "--out", type=user_path, metavar="FILE", help="write the page there instead"
    )
    report.set_defaults(command=_report)

    ablation = commands.add_parser(
        "ablation", help="compare plain, SOHO, KD-VLP and both with the same steps and seeds"
    )
    _add_recipe(ablation)
    ablation.add_argument(
        "--seeds",
        type=whole_number(lowest=1),
        default=3,
        metavar="N",
        help="seeds per student (default: 3)",
    )
    ablation.add_argument(
        "--only",
        nargs="+",
        choices=("plain", "soho", "kdvlp", "both"),
        default=[],
        help="train only these students; other machines may train the others in the same run "
        "folder. The command without --only then writes the table and the report",
    )
    ablation.set_defaults(command=_ablation)

    doctor = commands.add_parser(
        "doctor", help="check the environment: what is missing, with fixes"
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.add_argument(
        "--launch",
        metavar="RECIPE",
        help="start the ranks of a recipe and compare code, recipe, shared folder, clocks and disks "
        "of the nodes",
    )
    _add_run_options(doctor)
    _add_launch_options(doctor)
    doctor.set_defaults(command=_doctor)


if __name__ == "__main__":
    sys.exit(main())
