"""The interface of a downstream task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from stages.student.heads import ItmHead
from stages.student.network import Student
from stages.student.processor import StudentProcessor
from stages.student.text.token_types import Spans
from stages.transfer.example import Example
from stages.transfer.fixed_blocks import fixed_blocks
from stages.transfer.heads.classifier import ClassifierHead, EncoderHead
from stages.transfer.heads.encoder_inputs import encoder_inputs
from stages.transfer.outcomes import Outcome
from stages.transfer.readers.records import TaskData
from stages.transfer.task_batch import TaskBatch, collate
from stages.transfer.task_config import TaskDataConfig

ROWS_TOGETHER = 4
LENGTH_STEP = 8
"""Predictions are computed of blocks of so many texts, padded to a multiple of so many word pieces:
of few texts a picture, little is wasted."""
Scores = dict[str, dict[str, Any]]
"""Scores by name: "value" beside "chance", and what else belongs to it."""


class Task(ABC):
    """One task. The state is what its head needs beside weights (VQA's answers); it is saved with
    the head and is plain JSON."""

    name: ClassVar[str]
    score_name: ClassVar[str]
    """The score by which the best step is kept."""
    num_images: ClassVar[int] = 1
    num_person_tags: ClassVar[int] = 0
    """Person tags that the tokenizer has to know."""
    num_token_types: ClassVar[int] = 2

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.state = dict(state)

    @staticmethod
    @abstractmethod
    def read(data: TaskDataConfig, split: str) -> TaskData:
        """The examples of "train" or "heldout", from the original files."""

    @classmethod
    def prepare(cls, train: Sequence[Example]) -> dict[str, Any]:
        """The state, from the training examples."""
        return {}

    def texts(self, example: Example, *, training: bool) -> Sequence[str | Spans]:
        """The texts that are read of an example, a row each."""
        return example.texts

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Outputs of the head for each row."""

    def make_head(self, hidden_size: int) -> nn.Module:
        """[CLS] of each of a row's pictures [R, P * D] -> logits [R, num_outputs]."""
        if size := self.state.get("encoder_inputs"):
            return EncoderHead(size, self.num_outputs)
        return ClassifierHead(self.num_images, hidden_size, self.num_outputs)

    def start_head(self, head: nn.Module, student: Student) -> None:
        """Take from pretraining what fits into a new head: by default the matching head's pooler,
        where it has one (UNITER, ViLT)."""
        if isinstance(head, ClassifierHead) and isinstance(student.itm_head, ItmHead):
            head.pool.load_state_dict(student.itm_head.pool.state_dict())

    def head_inputs(self, student: Student, batch: TaskBatch) -> torch.Tensor:
        """What the head reads of each row: the fusion's [CLS] of each of its pictures [R, P * D],
        or what the state asks for, `encoder_inputs`."""
        if self.state.get("encoder_inputs"):
            cells = batch.encoded(student)
            return encoder_inputs(student, cells, picture=batch.picture[:, 0], tokens=batch.tokens)
        return batch.cls(student).flatten(1)

    def logits(self, student: Student, head: nn.Module, batch: TaskBatch) -> torch.Tensor:
        """[R, num_outputs], each row of its own text and pictures alone."""
        return head(self.head_inputs(student, batch))

    def predictor(
        self,
        student: Student,
        head: nn.Module,
        processor: StudentProcessor,
        examples: Sequence[Example],
    ) -> Callable[[tuple[Example, ...]], dict[str, Any]]:
        """A function from a group of examples, of one set of pictures, to predictions by id. The
        network has to be in evaluation mode. `examples`: all that are predicted."""

        @torch.no_grad()
        def predict_group(group: tuple[Example, ...]) -> dict[str, Any]:
            rows_of = {e.id: self.texts(e, training=False) for e in group}
            batch = collate(
                group, processor, lambda e: rows_of[e.id], cell_px=student.grid.cell_px
            ).to(student.device)
            logits = self.logits_in_blocks(student, head, batch)
            found, start = {}, 0
            for example in group:
                rows = slice(start, start + len(rows_of[example.id]))
                own = batch.of_example(example, rows)
                [found[example.id]] = self.predict(logits[rows], own)
                start = rows.stop
            return found

        return predict_group

    def logits_in_blocks(self, student: Student, head: nn.Module, batch: TaskBatch) -> torch.Tensor:
        """As `logits`, but no row depends on the others, not in its last digit."""
        batch = batch.with_cells(student)
        lengths = (batch.tokens != student.pad_id).sum(dim=1).tolist()
        rows: list[torch.Tensor] = [torch.empty(0)] * len(lengths)
        blocks = fixed_blocks(
            lengths,
            num_rows=ROWS_TOGETHER,
            length_step=LENGTH_STEP,
            max_length=student.config.max_tokens,
        )
        for block in blocks:
            logits = self.logits(student, head, batch.of_block(block, pad_id=student.pad_id))
            for number, row in zip(block.members, logits):
                rows[number] = row
        return torch.stack(rows)

    @abstractmethod
    def loss(self, logits: torch.Tensor, batch: TaskBatch) -> torch.Tensor:
        """A scalar, the mean over the batch's examples."""

    @abstractmethod
    def predict(self, logits: torch.Tensor, batch: TaskBatch) -> list[Any]:
        """A prediction an example, plain JSON."""

    @abstractmethod
    def score(self, examples: Sequence[Example], predictions: Mapping[str, Any]) -> Scores:
        """Scores of labelled examples from predictions by id, as the official script gives them."""

    def outcomes(
        self, examples: Sequence[Example], predictions: Mapping[str, Any]
    ) -> list[Outcome]:
        """How the prediction of each labelled example turned out, for the task's page. A task in
        which an outcome depends on other examples overrides it."""
        return [self.outcome(example, predictions[example.id]) for example in examples]

    def outcome(self, example: Example, prediction: Any) -> Outcome:
        """How the prediction of one labelled example turned out."""
        raise NotImplementedError

    @abstractmethod
    def submission(
        self, examples: Sequence[Example], predictions: Mapping[str, Any]
    ) -> tuple[str, str]:
        """The official submission: file name and text."""


class LabelTask(Task):
    """A task of one label an example out of a few, by cross-entropy."""

    labels: ClassVar[tuple[str, ...]]

    @property
    def num_outputs(self) -> int:
        """One a label."""
        return len(self.labels)

    def loss(self, logits: torch.Tensor, batch: TaskBatch) -> torch.Tensor:
        """Cross-entropy of the labels."""
        labels = [self.labels.index(example.label) for example in batch.examples]
        return F.cross_entropy(logits.float(), torch.tensor(labels, device=logits.device))

    def predict(self, logits: torch.Tensor, batch: TaskBatch) -> list[Any]:
        """{"label": the first of the most probable, "probabilities": by label}."""
        found = []
        for row in logits.double().softmax(dim=-1).tolist():
            best = max(range(len(row)), key=row.__getitem__)
            found.append({"label": self.labels[best], "probabilities": dict(zip(self.labels, row))})
        return found

    def outcome(self, example: Example, prediction: Any) -> Outcome:
        """Right where the label is."""
        label = prediction["label"]
        return Outcome(
            said=label,
            truth=str(example.label),
            right=float(label == example.label),
            confidence=prediction["probabilities"][label],
        )

    def largest_class(self, examples: Sequence[Example]) -> float:
        """The share of the commonest label: what a constant answer reaches."""
        return Counter(e.label for e in examples).most_common(1)[0][1] / len(examples)
