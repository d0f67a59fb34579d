"""Object-guided masked vision modelling (KD-VLP, arXiv 2109.10504). Settings: `pretrain.omvm`."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from stages.pretrain.data.batch import Batch
from stages.pretrain.objectives.config import OmvmConfig
from stages.pretrain.objectives.objective import (
    Objective,
    ObjectiveOutput,
    hit_ratio,
    mean_loss,
    number,
    text_and_cells,
)
from stages.student.heads import single
from stages.student.network import Student
from stages.student.outputs import Cells, Hidden


class Omvm(Objective):
    """Mask all cells of an object, predict what the teacher saw there.

    v [D] = mean of the fusion's outputs over the object's cells, as `pretrain.regions` weighs them.
    loss = label_weight x (-sum_k q_k log softmax(W g(v))[k]) + feature_weight x |V g(v) - f|^2 / F,
    mean over masked objects; q is the teacher's label (one class, or its soft label over the K
    best classes brought to sum 1), f [F] its feature (`feature_loss` has other distances). That
    whole objects are masked, and both losses, are of the paper; every number is ours. An object
    without a cell is none.
    """

    name = "omvm"
    labels = ("omvm",)

    def __init__(self, config: OmvmConfig) -> None:
        self.config = config

    def mask(
        self, batch: Batch, tokenizer: PreTrainedTokenizerFast, random: np.random.Generator
    ) -> None:
        """Draw objects into `batch.masked_objects`, add their cells to `batch.masked_cells`."""
        exists = batch.is_object[batch.picture]
        # The least of exponential draws over weights are a weighted draw without replacement
        # (Efraimidis and Spirakis 2006, doi 10.1016/j.ipl.2005.11.003).
        waits = -torch.from_numpy(random.random(exists.shape)).neg().log1p()
        waits = waits / self._weights(batch)[batch.picture]
        rows = waits.masked_fill(~exists, torch.inf).argsort(dim=1)[:, : self.config.num_objects]
        rows = torch.where(exists.gather(1, rows), rows, -1)
        is_masked = torch.from_numpy(random.random(rows.shape)) < self.config.mask_probability
        cells = batch.regions[batch.picture[:, None], rows.clamp(min=0)] > 0
        cells = cells & (rows >= 0)[..., None] & is_masked[..., None]
        batch.masked_cells = batch.masked_cells | cells.any(dim=1)
        # Mismatched pairs are masked too, even if nothing is learned from them: if only matched
        # pictures had holes, ITM could infer the answer from that.
        learned = batch.matched[:, None] if self.config.matched_only else torch.tensor(True)
        batch.masked_objects = torch.where(learned, rows, -1)

    def find(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The masked objects: pair and column."""
        return {"omvm": (batch.masked_objects >= 0).nonzero().T}

    def output_mask(self, batch: Batch) -> torch.Tensor:
        """The cells of the masked objects."""
        rows = batch.masked_objects
        cells = batch.regions[batch.picture[:, None], rows.clamp(min=0)] > 0
        cells = cells & (rows >= 0)[..., None]
        return text_and_cells(batch, None, cells.any(dim=1))

    def score(
        self, student: Student, cells: Cells, hidden: Hidden, batch: Batch
    ) -> ObjectiveOutput:
        """Label and feature loss, and label accuracy, over the drawn objects."""
        pair, column = self.places(batch, "omvm")
        row, picture = batch.masked_objects[pair, column], batch.picture[pair]
        region = batch.regions[picture, row].to(hidden.cells.dtype)
        pooled = (region[:, None] @ hidden.cells[pair])[:, 0]
        logits, feature = (single(output) for output in student.object_head(pooled))
        label = batch.label[picture, row]
        mean_labels = batch.mean_labels.get("omvm")
        label_loss = mean_loss(self._label_losses(logits, batch, picture, row), mean_labels)
        feature_losses = self._feature_losses(feature, batch.feature[picture, row])
        feature_loss = mean_loss(feature_losses, mean_labels)
        count = number(len(label), label)
        return ObjectiveOutput(
            loss=self.config.label_weight * label_loss + self.config.feature_weight * feature_loss,
            metrics={
                "label_accuracy": hit_ratio(logits.argmax(-1) == label),
                "feature_loss": (feature_losses.detach().sum(), count),
            },
        )

    def _weights(self, batch: Batch) -> torch.Tensor:
        """How readily each object is drawn: [N, O], above 0."""
        if self.config.draw == "score":
            return batch.score.double().clamp(min=1e-6)
        if self.config.draw == "area":
            return (batch.regions > 0).sum(dim=-1).double().clamp(min=1)
        return torch.ones_like(batch.score, dtype=torch.float64)

    def _feature_losses(self, feature: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """A distance a row: [M, F] twice -> [M]."""
        if self.config.feature_loss == "cosine":
            return 1 - F.cosine_similarity(feature, wanted, dim=-1)
        if self.config.feature_loss == "smooth_l1":
            return F.smooth_l1_loss(feature, wanted, reduction="none").mean(dim=-1)
        return (feature - wanted).square().mean(dim=-1)

    def _label_losses(
        self, logits: torch.Tensor, batch: Batch, picture: torch.Tensor, row: torch.Tensor
    ) -> torch.Tensor:
        if not self.config.soft_label:
            return F.cross_entropy(logits, batch.label[picture, row], reduction="none")
        score = batch.top_score[picture, row]
        score = score / score.sum(dim=-1, keepdim=True).clamp(min=1e-6)
        log_probability = logits.log_softmax(dim=-1)
        return -(score * log_probability.gather(1, batch.top_label[picture, row])).sum(dim=-1)
