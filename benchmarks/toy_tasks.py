"""Every downstream task in the toy world: the pretrained student beside the same network without
pretraining, and both beside chance, over some seeds.

    python -m benchmarks.toy_tasks --student RUN/student --images RUN/images --out DIR

The vocabulary is the pretrained student's in both. A task and seed that is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import torch

from stages.student.network import Student
from stages.student.processor import StudentProcessor
from stages.transfer.config import TASK_NAMES, FinetuneConfig
from stages.transfer.finetune_task import finetune_task
from stages.transfer.tasks import TASKS

TOY_TASKS = [name for name in TASK_NAMES if name != "nlvr"]


def main(arguments: list[str] | None = None) -> int:
    """Train, score and print a table."""
    args = _options(arguments)
    os.environ.setdefault("LOCAL_RANK", "0")
    rows = []
    for task in args.tasks:
        for seed in range(args.seeds):
            found = {}
            for start in ("pretrained", "fresh"):
                student = args.student
                if start == "fresh":
                    student = _fresh(args.student, seed, args.out / "fresh" / str(seed))
                out = args.out / task / f"{start}-{seed}"
                found[start] = _scores(task, args.num_steps, seed, args.images, student, out)
            rows += [(task, seed, name, found) for name in found["pretrained"]]
    print(f"{'task':10} {'seed':4} {'score':28} {'pretrained':>10} {'fresh':>10} {'chance':>10}")
    for task, seed, name, found in rows:
        values = [found["pretrained"][name]["value"], found["fresh"][name]["value"]]
        chance = found["pretrained"][name]["chance"]
        numbers = " ".join(f"{100 * value:10.1f}" for value in (*values, chance))
        print(f"{task:10} {seed:4} {name:28} {numbers}")
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--student", type=Path, required=True, help="a pretrained student's folder")
    parser.add_argument("--images", type=Path, required=True, help="the toy world's image shards")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=TOY_TASKS, default=TOY_TASKS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num-steps", type=int, default=300)
    return parser.parse_args(arguments)


def _fresh(pretrained: Path, seed: int, out: Path) -> Path:
    """The same network with random weights."""
    if not (out / "config.json").exists():
        torch.manual_seed(seed)
        student = Student(Student.config_class.from_pretrained(str(pretrained)))
        StudentProcessor.from_pretrained(pretrained).save_pretrained(out)
        student.save_pretrained(str(out))
    return out


def _scores(
    task: str, num_steps: int, seed: int, images: Path, student: Path, out: Path
) -> dict[str, dict[str, float]]:
    if not (out / "scores.json").exists():
        config = FinetuneConfig(
            task=task, num_steps=num_steps, validate_steps=num_steps, checkpoint_steps=num_steps
        )
        finetune_task(config, seed=seed, images=images, student=student, out=out)
    scores = json.loads((out / "scores.json").read_text())
    assert TASKS[task].score_name in scores
    return scores


if __name__ == "__main__":
    sys.exit(main())
