"""Every downstream task in the toy world, over some seeds: pretrained students side by side, beside
the same network without pretraining, and beside chance.

    python -m benchmarks.transfer.toy_tasks --student kdvlp=RUN/student --images RUN/images
        --out DIR

`--student NAME=FOLDER` may stand several times, as for the students of `boxless ablation`. Settings
are those of `finetune` in the recipe toy. A task, seed and student that is done is not done again.
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

Scores = dict[str, dict[str, float]]


def main(arguments: list[str] | None = None) -> int:
    """Train, score and print a table."""
    args = _options(arguments)
    os.environ.setdefault("LOCAL_RANK", "0")
    students = dict(one.split("=", 1) for one in args.student)
    columns = (*students, NOT_PRETRAINED)
    print(
        f"{'task':10} {'seed':4} {'score':24} " + " ".join(f"{c:>14}" for c in (*columns, "chance"))
    )
    for task in args.tasks:
        for seed in range(args.seeds):
            found = {name: _scores(args, task, seed, name, students) for name in columns}
            for score, entry in found[columns[0]].items():
                values = [*(found[name][score]["value"] for name in columns), entry["chance"]]
                numbers = " ".join(f"{100 * value:14.1f}" for value in values)
                print(f"{task:10} {seed:4} {score:24} {numbers}", flush=True)
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--student", action="append", required=True, metavar="NAME=FOLDER", help="pretrained"
    )
    parser.add_argument("--images", type=Path, required=True, help="the toy world's image shards")
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
