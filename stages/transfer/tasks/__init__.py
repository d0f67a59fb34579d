"""The downstream tasks, a file each; `TASK_CLASSES` of `stages.transfer.config` lists them."""

from __future__ import annotations

from importlib import import_module

from stages.transfer.config import TASK_CLASSES
from stages.transfer.tasks.task import Task


def _task_class(place: str) -> type[Task]:
    module, _, name = place.partition(".")
    found: type[Task] = getattr(import_module(f"stages.transfer.tasks.{module}"), name)
    return found


TASKS = {name: _task_class(place) for name, place in TASK_CLASSES.items()}
