"""The interface of an objective: masks a batch, and computes a loss from the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from stages.pretrain.data.batch import Batch
from stages.student.network import Student
from stages.student.outputs import Cells, Hidden
from stages.training.monitoring.metrics import ObjectiveOutput


class Objective(Protocol):
    """A pretext task; its settings are the part of the recipe that bears its name."""

    name: str
    """The paper's abbreviation, lower case: the key in recipe and metrics."""
    fuses: bool = True
    """Whether `score` looks at the fusion's outputs."""
    contrasts: bool = False
    """Whether it looks at `batch.contrast`."""
    masks_by_code: bool = False
    """Whether what it masks and looks at is known only when the CNN has run."""
    labels: tuple[str, ...] = ()
    """The `places` whose numbers its losses are means over."""

    def mask(
        self, batch: Batch, tokenizer: PreTrainedTokenizerFast, random: np.random.Generator
    ) -> None:
        """Mask in `batch` what the student is to predict, and store the targets in it."""

    def find(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Where it looks in a masked batch, as index tensors [k, M]: `batch.places`. Collate keeps
        them, so that no device has to be asked how many there are."""
        return {}

    def places(self, batch: Batch, name: str) -> torch.Tensor:
        """Those of `name`: collate's, or of a batch without them found now."""
        kept = batch.places.get(name)
        return self.find(batch)[name] if kept is None else kept

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


def output_mask_of(objectives: Sequence[Objective], batch: Batch) -> torch.Tensor | None:
    """The fusion's outputs that any of the objectives looks at, bool [B, T + C]; None for all."""
    read = None
    for objective in objectives:
        own = objective.output_mask(batch)
        if own is None:
            return None
        read = own if read is None else read | own
    return read


def text_and_cells(
    batch: Batch, text: torch.Tensor | None, cells: torch.Tensor | None
) -> torch.Tensor:
    """text bool [B, T] and cells bool [B, C], None where there are none -> bool [B, T + C]."""
    if text is None:
        text = torch.zeros_like(batch.tokens, dtype=torch.bool)
    if cells is None:
        cells = torch.zeros_like(batch.masked_cells)
    return torch.cat([text, cells], dim=1)


def mean_loss(
    losses: torch.Tensor, mean_labels: torch.Tensor | None = None, *, epsilon: float = 0.0
) -> torch.Tensor:
    """Sum of the losses of labelled rows over `mean_labels`, the mean number of labels of a
    micro-batch of the step: the mean of micro-batches is then the mean over all labels of the step,
    however they are shared out. None for the number of `losses`; 0, still attached to the graph,
    where there are none. `epsilon` is added to the number (SOHO's released code)."""
    if mean_labels is not None:
        return losses.sum() / (mean_labels + epsilon).clamp(min=1e-6)
    return losses.sum() / (losses.numel() + epsilon if epsilon else max(1, losses.numel()))


def hit_ratio(hits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A metric from hits (bool, any shape): their number and how many there could be."""
    return hits.sum().float(), number(hits.numel(), hits)


def number(value: float, like: torch.Tensor) -> torch.Tensor:
    """A float32 scalar where `like` is, without a copy from the host."""
    return torch.full((), value, dtype=torch.float32, device=like.device)


def at(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The rows [M, ...] of values [B, T, ...] at places [2, M]."""
    return values[places[0], places[1]]
