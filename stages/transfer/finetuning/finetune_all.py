"""All downstream tasks in turn, on files made from a run's image shards: a pretrained student
beside the same network without pretraining, each score beside chance.

Writes TASK/pretrained and TASK/not_pretrained into `out`, as `finetune_task` does, and
`scores.json`, last. What is done is not done again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sharding.writing.atomic import write_json
from stages.student.network import Student
from stages.student.processor import StudentProcessor
from stages.training.engine import join_ranks
from stages.transfer.config import TASK_NAMES, FinetuneConfig
from stages.transfer.finetuning.finetune_task import finetune_task

PRETRAINED, NOT_PRETRAINED = "pretrained", "not_pretrained"


def finetune_all(
    config: FinetuneConfig,
    *,
    seed: int,
    images: Path,
    student: Path,
    out: Path,
    on_step: Callable[[int], None] | None = None,
    tasks: tuple[str, ...] = TASK_NAMES,
) -> dict[str, dict[str, Any]]:
    """Teach `tasks` one after the other, on any number of ranks; the scores, each with what the
    network without pretraining reaches as "not_pretrained". on_step: called with the number of
    steps done of all.

    Raises what `finetune_task` raises; ValueError where the image shards lack the truth about their
    pictures, of which the files are made.
    """
    join_ranks()
    starts = {PRETRAINED: student, NOT_PRETRAINED: out / f"student-{seed}"}
    if torch.distributed.get_rank() == 0:
        write_fresh_student(student, starts[NOT_PRETRAINED], seed)
    torch.distributed.barrier()
    found: dict[str, dict[str, Any]] = {}
    num_done = 0

    def count_step(step: int) -> None:
        if on_step is not None:
            on_step(num_done + step)

    for task in tasks:
        for start, folder in starts.items():
            place = out / task / start
            if not (place / "scores.json").exists():
                finetune_task(
                    replace(config, task=task),
                    seed=seed,
                    images=images,
                    student=folder,
                    out=place,
                    on_step=count_step,
                )
            num_done += config.num_steps
        found |= beside(*(_scores(out / task / start) for start in starts))
    if torch.distributed.get_rank() == 0:
        write_json(out / "scores.json", found)
        for line in lines(found):
            print(f"finetune: {line}", flush=True)
    torch.distributed.barrier()
    return found


def beside(
    pretrained: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Scores of a pretrained student with those of another start beside them."""
    return {
        name: {**entry, NOT_PRETRAINED: other[name]["value"]} for name, entry in pretrained.items()
    }


def lines(found: dict[str, dict[str, Any]]) -> list[str]:
    """A line a score: its value, that without pretraining, and chance."""
    return [
        f"{name} {entry['value']:.4f}, not pretrained {entry[NOT_PRETRAINED]:.4f}, chance "
        f"{entry['chance']:.4f}"
        for name, entry in found.items()
    ]


def write_fresh_student(pretrained: Path, out: Path, seed: int) -> None:
    """The same network with random weights and the same vocabulary, unless it is there."""
    if (out / "config.json").exists():
        return
    torch.manual_seed(seed)
    student = Student(Student.config_class.from_pretrained(str(pretrained)))
    made = out.with_name(f".{out.name}.{os.getpid()}")
    StudentProcessor.from_pretrained(pretrained).save_pretrained(made)
    student.save_pretrained(str(made))
    os.rename(made, out)


def _scores(folder: Path) -> dict[str, dict[str, Any]]:
    return json.loads((folder / "scores.json").read_text())
