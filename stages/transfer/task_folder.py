"""The head of a task in a student folder: `tasks/NAME/head.safetensors` and `task.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from boxless.errors import BoxlessError
from sharding.writing.atomic import write_json
from stages.student.folder.errors import check_finite, loading, read_settings
from stages.student.network import Student
from stages.student.processor import StudentProcessor
from stages.transfer.tasks import TASKS
from stages.transfer.tasks.task import Task

HEAD, STATE = "head.safetensors", "task.json"


def taught_tasks(folder: Path) -> list[str]:
    """The tasks whose heads a student folder has. Raises ValueError where it is no such folder."""
    if not (folder / "config.json").is_file():
        raise BoxlessError(f"{folder}: got no config.json, expected the folder of a student")
    return sorted(path.parent.name for path in folder.glob(f"tasks/*/{STATE}"))


def check_taught(folder: Path, name: str | None) -> str:
    """The name of a task that a student folder knows. Raises ValueError for any other."""
    known = taught_tasks(folder)
    if name not in known:
        raise BoxlessError(
            f"{folder}: got task {name}, expected one that this student knows: "
            f"{', '.join(known) or 'none'}; boxless finetune trains one"
        )
    return name


@dataclass(frozen=True, kw_only=True)
class TaskStudent:
    """A student that knows a task: network, head and processor, ready to predict."""

    task: Task
    student: Student
    head: nn.Module
    processor: StudentProcessor

    @classmethod
    def load(cls, folder: Path, name: str | None = None) -> TaskStudent:
        """From a student folder, in float32. `name`: the task, where the folder knows several.
        Raises ValueError where it does not know it."""
        known = taught_tasks(folder)
        name = known[0] if name is None and len(known) == 1 else check_taught(folder, name)
        return cls.with_head(
            folder,
            name,
            student=Student.from_pretrained(str(folder), dtype=torch.float32).eval(),
            processor=StudentProcessor.from_pretrained(folder),
        )

    @classmethod
    def with_head(
        cls, folder: Path, name: str, *, student: Student, processor: StudentProcessor
    ) -> TaskStudent:
        """The folder's student and processor, read before, with the head of a task that it knows.
        Raises ValueError where the head's files are damaged or do not fit."""
        task = TASKS[name](read_settings(folder / "tasks" / name / STATE))
        head = task.make_head(student.config.bert["hidden_size"])
        with loading(str(folder / "tasks" / name)):
            weights = load_file(folder / "tasks" / name / HEAD)
        if _shapes(weights) != _shapes(head.state_dict()):
            raise BoxlessError(
                f"{folder / 'tasks' / name / HEAD}: got {_shapes(weights)}, expected "
                f"{_shapes(head.state_dict())}; it is of an earlier version: boxless finetune "
                "teaches the task again"
            )
        check_finite(folder / "tasks" / name / HEAD, weights)
        head.load_state_dict(weights)
        return cls(task=task, student=student, head=head.eval(), processor=processor)


def _shapes(weights: Mapping[str, torch.Tensor]) -> dict[str, list[int]]:
    return {name: list(weights[name].shape) for name in sorted(weights)}


def save_head(folder: Path, task: Task, weights: Mapping[str, torch.Tensor]) -> None:
    """Add a task's head to a student folder that is being written."""
    place = folder / "tasks" / task.name
    place.mkdir(parents=True)
    save_file({name: w.contiguous() for name, w in weights.items()}, str(place / HEAD))
    write_json(place / STATE, task.state)
