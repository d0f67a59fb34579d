"""SNLI-VE: whether a picture entails or contradicts a sentence, or neither (Xie et al., 2019)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.student.text.token_types import NUM_VCR_TOKEN_TYPES
from stages.transfer.example import Example
from stages.transfer.metrics.classification import accuracy_score
from stages.transfer.readers.records import TaskData
from stages.transfer.readers.snli_ve import LABELS, read_snli_ve
from stages.transfer.task_config import TaskDataConfig
from stages.transfer.tasks.task import LabelTask, Scores


class SnliVeTask(LabelTask):
    """Accuracy over three labels, with the `text_premise` switch beside it."""

    name = "snli_ve"
    score_name = "snli_ve_accuracy"
    labels = LABELS
    # A premise is read as a first part, which needs a token type of its own.
    num_token_types = NUM_VCR_TOKEN_TYPES

    @staticmethod
    def read(data: TaskDataConfig, split: str) -> TaskData:
        """From snli_ve_SPLIT.jsonl."""
        return read_snli_ve(
            Path(data.path("", split)),
            Path(data.path("images", split)),
            text_premise=data.text_premise,
            max_missing=data.max_missing,
        )

    def score(self, examples: Sequence[Example], predictions: Mapping[str, Any]) -> Scores:
        """Accuracy; chance is the largest class."""
        labels = {example.id: example.label for example in examples}
        found = accuracy_score(labels, {key: p["label"] for key, p in predictions.items()})
        has_premise = any(not isinstance(text, str) for e in examples for text in e.texts)
        return {
            self.score_name: {
                "value": found.accuracy,
                "chance": self.largest_class(examples),
                "num": found.num,
                "text_premise": has_premise,
                "per_label": found.per_label,
            }
        }

    def submission(
        self, examples: Sequence[Example], predictions: Mapping[str, Any]
    ) -> tuple[str, str]:
        """JSON lines of pairID and label (the task has no official test server)."""
        lines = (
            json.dumps({"pairID": e.id, "label": predictions[e.id]["label"]}) for e in examples
        )
        return "snli_ve.jsonl", "".join(line + "\n" for line in lines)
