"""NLVR2 and NLVR: whether a sentence is true of two photographs, or of a generated picture.

Suhr et al., ACL 2019 and ACL 2017. Two pictures are read one after the other with the sentence, and
the head sees both [CLS] (as ViLT and METER do).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from stages.student.heads import ItmHead
from stages.student.network import Student
from stages.transfer.example import Example
from stages.transfer.metrics.consistency import (
    ConsistencyScore,
    format_predictions,
    nlvr2_score,
    nlvr_score,
)
from stages.transfer.readers.nlvr import LABELS, read_nlvr, read_nlvr2
from stages.transfer.readers.records import TaskData
from stages.transfer.task_config import TaskDataConfig
from stages.transfer.tasks.task import LabelTask, Scores


class Nlvr2Task(LabelTask):
    """Accuracy, and consistency over the pairs of a sentence."""

    name = "nlvr2"
    score_name = "nlvr2_accuracy"
    num_images = 2
    labels = LABELS
    _official: ClassVar[Callable[..., ConsistencyScore]] = staticmethod(nlvr2_score)

    @staticmethod
    def read(data: TaskDataConfig, split: str) -> TaskData:
        """From nlvr2's train, dev, test1 or test2 lines."""
        return read_nlvr2(
            Path(data.path("", split)),
            Path(data.path("images", split)),
            max_missing=data.max_missing,
        )

    def score(self, examples: Sequence[Example], predictions: Mapping[str, Any]) -> Scores:
        """Chance is the larger class; a constant answer's consistency beside consistency."""
        labels = {example.id: example.label for example in examples}
        said = {key: predictions[key]["label"] for key in labels}
        found = type(self)._official(labels, said)
        constant = max(
            (type(self)._official(labels, dict.fromkeys(labels, label)) for label in LABELS),
            key=lambda score: score.accuracy,
        )
        return {
            self.score_name: {
                "value": found.accuracy,
                "chance": constant.accuracy,
                "num": found.num_examples,
            },
            f"{self.name}_consistency": {
                "value": found.consistency,
                "chance": constant.consistency,
                "num": found.num_groups,
            },
        }

    def submission(
        self, examples: Sequence[Example], predictions: Mapping[str, Any]
    ) -> tuple[str, str]:
        """Lines `identifier,label`."""
        said = {example.id: predictions[example.id]["label"] for example in examples}
        return f"{self.name}.csv", format_predictions(said)


class NlvrTask(Nlvr2Task):
    """The same of one generated picture."""

    name = "nlvr"
    score_name = "nlvr_accuracy"
    num_images = 1
    _official: ClassVar[Callable[..., ConsistencyScore]] = staticmethod(nlvr_score)

    @staticmethod
    def read(data: TaskDataConfig, split: str) -> TaskData:
        """From nlvr's train.json, dev.json or test.json, the name of which is that of its
        pictures."""
        path = Path(data.path("", split))
        return read_nlvr(
            path,
            Path(data.path("images", split)),
            split=path.stem,
            num_orders=data.nlvr_num_orders,
            num_statements=data.nlvr_num_statements if split == "train" else 0,
            max_missing=data.max_missing,
        )

    def make_head(self, hidden_size: int) -> nn.Module:
        """The matching head's shape, so that it can start as that head: no, yes."""
        return ItmHead(hidden_size)

    def start_head(self, head: nn.Module, student: Student) -> None:
        """Start as the matching head, where that is of this kind."""
        if isinstance(student.itm_head, ItmHead):
            # Logits of that head are (no, yes); of this one they are in the order of LABELS.
            state = {name: value.clone() for name, value in student.itm_head.state_dict().items()}
            for name in ("classify.weight", "classify.bias"):
                state[name] = state[name].flip(0)
            head.load_state_dict(state)
