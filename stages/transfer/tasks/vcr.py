"""VCR: choose an answer, and the rationale that explains it (Zellers et al., CVPR 2019).

One score a (question, answer) and one a (question, answer, rationale), each a softmax over four.
Training reads the rationales of the right answer; scoring reads those of all four, which the test
file wants and which reveals nothing of the right one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from stages.student.heads import ItmHead
from stages.student.network import Student
from stages.student.text.token_types import NUM_VCR_TOKEN_TYPES, Spans
from stages.transfer.example import Example
from stages.transfer.metrics.classification import first_best
from stages.transfer.metrics.vcr_accuracy import NUM_CHOICES, format_submission, vcr_score
from stages.transfer.outcomes import Outcome
from stages.transfer.readers.records import TaskData
from stages.transfer.readers.vcr import read_vcr
from stages.transfer.task_batch import TaskBatch
from stages.transfer.task_config import TaskDataConfig
from stages.transfer.tasks.task import Scores, Task

NUM_PERSON_TAGS = 81


class VcrTask(Task):
    """Q->A, QA->R and Q->AR."""

    name = "vcr"
    score_name = "vcr_q_ar"
    num_person_tags = NUM_PERSON_TAGS
    num_token_types = NUM_VCR_TOKEN_TYPES

    @staticmethod
    def read(data: TaskDataConfig, split: str) -> TaskData:
        """From train, val or test.jsonl with the metadata beside the pictures."""
        return read_vcr(
            Path(data.path("", split)),
            Path(data.path("images", split)),
            max_missing=data.max_missing,
        )

    def texts(self, example: Example, *, training: bool) -> Sequence[str | Spans]:
        """In training the answers and the right one's rationales: 8 of the 20."""
        if not training:
            return example.texts
        start = NUM_CHOICES * (1 + example.label[0])
        return (*example.texts[:NUM_CHOICES], *example.texts[start : start + NUM_CHOICES])

    @property
    def num_outputs(self) -> int:
        """An answer's score and a rationale's."""
        return 2

    def make_head(self, hidden_size: int) -> nn.Module:
        """The matching head's shape: a score for a text as an answer, and one as a rationale."""
        return ItmHead(hidden_size)

    def start_head(self, head: nn.Module, student: Student) -> None:
        """Start with both scores as the matching head's log odds, where it is of this kind: of four
        texts the one that fits the picture best."""
        if isinstance(head, ItmHead) and isinstance(student.itm_head, ItmHead):
            state = {key: value.clone() for key, value in student.itm_head.state_dict().items()}
            for key in ("classify.weight", "classify.bias"):
                state[key] = (state[key][1] - state[key][0]).expand_as(state[key])
            head.load_state_dict(state)

    def loss(self, logits: torch.Tensor, batch: TaskBatch) -> torch.Tensor:
        """The sum of both cross-entropies."""
        scores = _by_choices(logits.float(), batch)
        labels = torch.tensor([example.label for example in batch.examples], device=logits.device)
        return F.cross_entropy(scores[:, 0], labels[:, 0]) + F.cross_entropy(
            scores[:, 1], labels[:, 1]
        )

    def predict(self, logits: torch.Tensor, batch: TaskBatch) -> list[Any]:
        """Five rows of four probabilities: answers, then rationales given answer 0 to 3."""
        return _by_choices(logits.double(), batch).softmax(dim=-1).tolist()

    def score(self, examples: Sequence[Example], predictions: Mapping[str, Any]) -> Scores:
        """Chance is a quarter, a quarter, and a sixteenth."""
        scores = np.array([predictions[example.id] for example in examples])
        answer, rationale = (np.array([e.label[i] for e in examples]) for i in (0, 1))
        given_right = scores[np.arange(len(scores)), 1 + answer]
        found = vcr_score(scores[:, 0], given_right, answer, rationale)
        quarter = 1 / NUM_CHOICES
        return {
            "vcr_q_a": {"value": found.answer, "chance": quarter, "num": found.num},
            "vcr_qa_r": {"value": found.rationale, "chance": quarter, "num": found.num},
            "vcr_q_ar": {"value": found.joint, "chance": quarter**2, "num": found.num},
        }

    def outcome(self, example: Example, prediction: Any) -> Outcome:
        """Of the answer alone, whatever the rationale."""
        said = first_best(prediction[0])
        truth = example.label[0]
        return Outcome(
            said=_last_part(example, said),
            truth=_last_part(example, truth),
            right=float(said == truth),
            confidence=prediction[0][said],
        )

    def submission(
        self, examples: Sequence[Example], predictions: Mapping[str, Any]
    ) -> tuple[str, str]:
        """The leaderboard's CSV."""
        scores = np.array([predictions[example.id] for example in examples])
        return "vcr_test.csv", format_submission([example.id for example in examples], scores)


def _last_part(example: Example, row: int) -> str:
    """The words of the answer among an example's texts."""
    text = example.texts[row]
    return text if isinstance(text, str) else text[-1][1]


def _by_choices(logits: torch.Tensor, batch: TaskBatch) -> torch.Tensor:
    """Logits [R, 2] as [E, G, 4]: the answers' scores, then each group of rationales'."""
    groups = logits.view(len(batch.examples), -1, NUM_CHOICES, 2)
    return torch.cat([groups[:, :1, :, 0], groups[:, 1:, :, 1]], dim=1)
