"""What every objective is: it masks a batch, and it scores what the student made of it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from stages.pretrain.data.batch import Batch
from stages.student.network import Cells, Hidden, Student
from stages.training.monitoring.metrics import ObjectiveOutput


class Objective(Protocol):
    """A pretext task; its settings are the part of the recipe that bears its name."""

    name: str
    """The paper's abbreviation, lower case: the key in recipe and metrics."""
    fuses: bool = True
    """Whether `score` looks at the fusion's outputs."""
    contrasts: bool = False
    """Whether it looks at `batch.contrast`."""

    def mask(
        self, batch: Batch, tokenizer: PreTrainedTokenizerFast, random: np.random.Generator
    ) -> None:
        """Mask in `batch` what the student is to predict, and store the targets in it."""

    def mask_cells(self, cells: Cells, batch: Batch) -> None:
        """Mask cells, where the CNN's output decides which; most objectives do not need it."""
        return

    def output_mask(self, batch: Batch) -> torch.Tensor | None:
        """The fusion's outputs that `score` uses, bool [B, T + C]; None for all of them."""
        return None

    def score(
        self, student: Student, cells: Cells, hidden: Hidden, batch: Batch
    ) -> ObjectiveOutput:
        """The loss of what the student made of the masked batch."""


def text_and_cells(
    batch: Batch, text: torch.Tensor | None, cells: torch.Tensor | None
) -> torch.Tensor:
    """text bool [B, T] and cells bool [B, C], None where there are none -> bool [B, T + C]."""
    if text is None:
        text = torch.zeros_like(batch.tokens, dtype=torch.bool)
    if cells is None:
        cells = torch.zeros_like(batch.masked_cells)
    return torch.cat([text, cells], dim=1)


def mean_loss(losses: torch.Tensor, epsilon: float = 0.0) -> torch.Tensor:
    """Mean over labelled rows; 0, still attached to the graph, where there are none. `epsilon` is
    added to their number (SOHO's released code)."""
    return losses.sum() / (losses.numel() + epsilon if epsilon else max(1, losses.numel()))


def share(hits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A metric from hits (bool, any shape): their number and how many there could be."""
    return hits.sum().float(), torch.tensor(float(hits.numel()), device=hits.device)
