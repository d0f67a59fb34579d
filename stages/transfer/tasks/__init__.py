"""The downstream tasks: a file each, and this table. Adding a task is a file and a line here."""

from __future__ import annotations

from stages.transfer.tasks.grounding import GroundingTask
from stages.transfer.tasks.nlvr import Nlvr2Task, NlvrTask
from stages.transfer.tasks.retrieval import RetrievalTask
from stages.transfer.tasks.snli_ve import SnliVeTask
from stages.transfer.tasks.task import Task
from stages.transfer.tasks.vcr import VcrTask
from stages.transfer.tasks.vqa import VqaTask

TASKS: dict[str, type[Task]] = {
    "retrieval": RetrievalTask,
    "vqa": VqaTask,
    "nlvr2": Nlvr2Task,
    "nlvr": NlvrTask,
    "snli_ve": SnliVeTask,
    "vcr": VcrTask,
    "grounding": GroundingTask,
}
