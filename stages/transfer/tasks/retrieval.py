"""Image-text retrieval on Karpathy's splits of COCO, Flickr30k and Flickr8k.

Tuned by ranking each caption's own picture before others of the batch with the matching head;
scored by the whole matrix of pictures and texts (`stages.transfer.retrieval_matrix`).
Letters: N pictures, R captions, K candidates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stages.student.network import Student
from stages.student.processor import StudentProcessor
from stages.student.text.token_types import Spans
from stages.transfer.example import Example
from stages.transfer.metrics.classification import first_best
from stages.transfer.metrics.retrieval_recall import fold_recalls, recalls, shortlist_shares
from stages.transfer.outcomes import Outcome
from stages.transfer.readers.karpathy import read_karpathy
from stages.transfer.readers.records import TaskData
from stages.transfer.retrieval_losses import contrastive_loss, matching_loss
from stages.transfer.retrieval_matrix import BEHIND, row_scorer, shortlist_scorer
from stages.transfer.task_batch import TaskBatch
from stages.transfer.task_config import TaskDataConfig
from stages.transfer.tasks.task import Scores, Task

MAX_NEGATIVES = 3


class RetrievalTask(Task):
    """Recall at 1, 5, 10 both ways; a prediction is a picture's row of scores of all texts."""

    name = "retrieval"
    score_name = "text_to_image_r1"

    @staticmethod
    def read(data: TaskDataConfig, split: str) -> TaskData:
        """From Karpathy's file, which holds all splits."""
        splits = data.train_splits if split == "train" else (data.heldout_split,)
        path = data.heldout if split == "heldout" and data.heldout else data.path("", "train")
        return read_karpathy(
            Path(path),
            Path(data.path("images", split)),
            splits=splits,
            max_missing=data.max_missing,
        )

    def texts(self, example: Example, *, training: bool) -> Sequence[str | Spans]:
        """All captions of a picture."""
        return example.texts

    @property
    def num_outputs(self) -> int:
        """One a candidate; the head is the student's own."""
        return 0

    def make_head(self, hidden_size: int) -> nn.Module:
        """None of its own."""
        return nn.Identity()

    def logits(self, student: Student, head: nn.Module, batch: TaskBatch) -> torch.Tensor:
        """[R, K]: the matching head's log odds of each caption with its own picture (first) and
        with others of the batch; with a contrastive head also its logits with all N: [R, K + N]."""
        own = batch.picture[:, 0]
        num_pictures = len(batch.pixels)
        others = torch.arange(min(MAX_NEGATIVES, num_pictures - 1) + 1, device=own.device)
        candidates = (own[:, None] + others) % num_pictures
        batch = batch.with_cells(student)
        odds = student.itm_head(batch.with_pictures(candidates).cls(student).flatten(0, 1))
        log_odds = (odds[:, 1] - odds[:, 0]).view_as(candidates)
        if student.contrastive_head is None:
            return log_odds
        pictures = student.embed_pictures(batch.encoded(student))
        return torch.cat(
            [log_odds, student.compare(student.embed_texts(batch.tokens), pictures)], 1
        )

    def loss(self, logits: torch.Tensor, batch: TaskBatch) -> torch.Tensor:
        """Cross-entropy over the candidates, the first of which is right, and of the odds alone; of
        contrastive logits, over the pictures of the batch and over its texts (ALBEF)."""
        num_candidates = min(MAX_NEGATIVES, len(batch.pixels) - 1) + 1
        logits, contrast = logits.float().split(
            (num_candidates, logits.shape[1] - num_candidates), dim=1
        )
        if contrast.shape[1]:
            return matching_loss(logits) + contrastive_loss(contrast, batch.picture[:, 0])
        return matching_loss(logits)

    def predictor(
        self,
        student: Student,
        head: nn.Module,
        processor: StudentProcessor,
        examples: Sequence[Example],
    ) -> Callable[[tuple[Example, ...]], dict[str, Any]]:
        """A picture's row of scores of all texts, by its id."""
        texts = [str(text) for example in examples for text in example.texts]
        num_best = self.state.get("shortlist", 0)
        if not num_best:
            return row_scorer(student, processor, texts)
        return shortlist_scorer(student, processor, texts, examples, num_best=num_best)

    def predict(self, logits: torch.Tensor, batch: TaskBatch) -> list[Any]:
        """The log odds of each candidate, of a batch by itself."""
        return logits.tolist()

    def score(self, examples: Sequence[Example], predictions: Mapping[str, Any]) -> Scores:
        """Recalls from the rows; over folds where the state says so."""
        matrix = torch.tensor([predictions[example.id] for example in examples])
        counts = torch.tensor([len(example.texts) for example in examples])
        picture_of = torch.arange(len(examples)).repeat_interleave(counts)
        num_folds = self.state.get("num_folds", 1)
        found = (
            fold_recalls(matrix, picture_of, num_folds=num_folds)
            if num_folds > 1
            else recalls(matrix, picture_of)
        )
        return found | shortlist_shares(matrix > BEHIND / 2, picture_of)

    def outcomes(
        self, examples: Sequence[Example], predictions: Mapping[str, Any]
    ) -> list[Outcome]:
        """Image to text: right where the best text is one of the picture's own."""
        texts = [str(text) for example in examples for text in example.texts]
        found, start = [], 0
        for example in examples:
            best = first_best(predictions[example.id])
            is_own = start <= best < start + len(example.texts)
            found.append(
                Outcome(said=texts[best], truth=str(example.texts[0]), right=float(is_own))
            )
            start += len(example.texts)
        return found

    def submission(
        self, examples: Sequence[Example], predictions: Mapping[str, Any]
    ) -> tuple[str, str]:
        """JSON lines: a picture with its ten best texts (there is no official test server)."""
        texts = [text for example in examples for text in example.texts]
        lines = []
        for example in examples:
            best = torch.tensor(predictions[example.id]).argsort(descending=True, stable=True)[:10]
            lines.append(json.dumps({"id": example.id, "texts": [texts[m] for m in best.tolist()]}))
        return "retrieval.jsonl", "\n".join(lines) + "\n"
