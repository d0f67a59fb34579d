"""Every downstream task on the toy data set, over some seeds: pretrained students, compared with
the same network without pretraining and with chance.

    python -m benchmarks.transfer.toy_tasks --student kdvlp=RUN/student --images RUN/images
        --out DIR

`--student NAME=FOLDER` may be repeated, as for the students of `boxless ablation`. Settings
are those of `finetune` in the recipe toy. A task, seed and student that is done is not done again,
and one that was stopped continues. The last lines are a table over the seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from pipeline.recipe.recipe import load_recipe
from stages.transfer.config import TASK_NAMES, FinetuneConfig
from stages.transfer.finetuning.finetune_all import NOT_PRETRAINED, write_fresh_student
from stages.transfer.finetuning.finetune_task import finetune_task
from stages.transfer.tasks import TASKS

Scores = dict[str, dict[str, float]]


def main(arguments: list[str] | None = None) -> int:
    """Train, score, and print a line a task, seed and score, then the table over seeds."""
    args = _options(arguments)
    os.environ.setdefault("LOCAL_RANK", "0")
    students = dict(one.split("=", 1) for one in args.student)
    columns = (*students, NOT_PRETRAINED)
    widths = [max(14, len(column)) for column in columns]
    heads = " ".join(f"{c:>{w}}" for c, w in zip((*columns, "chance"), (*widths, 14)))
    print(f"{'task':10} {'seed':4} {'score':24} {heads}")
    found: dict[str, list[dict[str, Scores]]] = {}
    for seed in range(args.seeds):
        for task in args.tasks:
            of_column = {name: _scores(args, task, seed, name, students) for name in columns}
            found.setdefault(task, []).append(of_column)
            for score, entry in of_column[columns[0]].items():
                values = [of_column[name][score]["value"] for name in columns]
                numbers = " ".join(f"{100 * v:{w}.1f}" for v, w in zip(values, widths))
                print(f"{task:10} {seed:4} {score:24} {numbers} {100 * entry['chance']:14.1f}")
                sys.stdout.flush()
    print("\n" + "\n".join(table(found, columns)))
    return 0


def table(found: dict[str, list[dict[str, Scores]]], columns: tuple[str, ...]) -> list[str]:
    """The lines of a Markdown table: of each task's main score the mean over seeds in per cent,
    with the lowest and highest, for each student, beside chance; and in how many seeds the first
    student is above the last. found: by task a list over seeds of {student: scores}."""
    rows = [
        f"| task, score | chance | {' | '.join(columns)} | {columns[0]} above {columns[-1]} |",
        "| --- " * (len(columns) + 3) + "|",
    ]
    for task, seeds in found.items():
        score = TASKS[task].score_name
        of = {name: [100 * seed[name][score]["value"] for seed in seeds] for name in columns}
        chance = 100 * seeds[0][columns[0]][score]["chance"]
        cells = [f"{sum(v) / len(v):.1f} ({min(v):.1f} to {max(v):.1f})" for v in of.values()]
        above = sum(one > other for one, other in zip(of[columns[0]], of[columns[-1]]))
        rows.append(
            f"| {task}, {score} | {chance:.1f} | {' | '.join(cells)} | {above} of {len(seeds)} |"
        )
    return rows


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--student", action="append", required=True, metavar="NAME=FOLDER", help="pretrained"
    )
    parser.add_argument(
        "--images", type=Path, required=True, help="the toy data set's image shards"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=TASK_NAMES, default=TASK_NAMES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num-steps", type=int, help="default: the recipe's")
    return parser.parse_args(arguments)


def _scores(
    args: argparse.Namespace, task: str, seed: int, name: str, students: dict[str, str]
) -> Scores:
    out = args.out / task / f"{name}-{seed}"
    if not (out / "scores.json").exists():
        config: FinetuneConfig = replace(load_recipe("toy").finetune, task=task)
        if args.num_steps:
            config = replace(config, num_steps=args.num_steps, validate_steps=args.num_steps)
        if name == NOT_PRETRAINED:
            folder = args.out / f"{NOT_PRETRAINED}-{seed}"
            write_fresh_student(Path(next(iter(students.values()))), folder, seed)
        else:
            folder = Path(students[name])
        finetune_task(config, seed=seed, images=args.images, student=folder, out=out)
    return json.loads((out / "scores.json").read_text())


if __name__ == "__main__":
    sys.exit(main())
