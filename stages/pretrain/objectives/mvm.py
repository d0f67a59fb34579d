"""Masked visual modelling (SOHO, arXiv 2104.03135, section 3.3). Settings: `pretrain.mvm`."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from stages.pretrain.data.batch import Batch
from stages.pretrain.objectives.config import MvmConfig
from stages.pretrain.objectives.objective import (
    Objective,
    ObjectiveOutput,
    hit_ratio,
    mean_loss,
    text_and_cells,
)
from stages.student.heads import in_float32
from stages.student.network import Student
from stages.student.outputs import Cells, Hidden
from stages.student.vision.visual_dictionary import Dictionary

IGNORED = -100


class Mvm(Objective):
    """Mask all cells of a code together, so that no neighbour shows it; predict the code.

    loss = mean over masked cells of -log softmax_k(cos(h, code_k) / temperature)[code of the cell],
    h [D] the fusion's output at the cell.

    A pair is drawn with `probability`; all others see their whole picture. `rule` "released" is
    what SOHO's code does: one cell of the grid for the whole batch; where it is visible in a drawn
    pair, all visible cells of its code are masked. "share" (ours) draws the cells of each drawn
    pair in an order of its own; each brings all cells of its code, until `share` of the picture is
    hidden. A code so large that more than `MOST` of the picture could be hidden is passed over.
    """

    name = "mvm"
    masks_by_code = True
    MOST = 0.5

    def __init__(self, config: MvmConfig) -> None:
        self.config = config

    def mask(
        self, batch: Batch, tokenizer: PreTrainedTokenizerFast, random: np.random.Generator
    ) -> None:
        """Draw `batch.anchors`: the codes of the cells are not known yet."""
        num_pairs, num_cells = batch.masked_cells.shape
        drawn = random.random(num_pairs)[:, None] < self.config.probability
        if self.config.rule == "released":
            anchors = np.where(drawn, random.integers(num_cells), -1)
        else:
            anchors = np.where(drawn, random.random((num_pairs, num_cells)).argsort(axis=1), -1)
        batch.anchors = torch.from_numpy(anchors)

    def mask_cells(self, cells: Cells, batch: Batch) -> None:
        """Add the cells of the drawn codes to `batch.masked_cells`, note codes in `mvm_labels`."""
        assert cells.codes is not None
        codes, inside = cells.codes[batch.picture], cells.inside[batch.picture]
        seen = inside & (codes >= 0)
        taken = self._taken_of_share if self.config.rule == "share" else self._taken_of_released
        masked = taken(codes, seen, batch.anchors)
        # Mismatched pairs are masked too, even if nothing is learned from them: if only matched
        # pictures had holes, ITM could infer the answer from that.
        batch.masked_cells = batch.masked_cells | masked
        learned = masked & batch.matched[:, None] if self.config.matched_only else masked
        batch.mvm_labels = torch.where(learned, codes, IGNORED)

    def output_mask(self, batch: Batch) -> torch.Tensor:
        """The masked cells."""
        return text_and_cells(batch, None, batch.mvm_labels != IGNORED)

    def score(
        self, student: Student, cells: Cells, hidden: Hidden, batch: Batch
    ) -> ObjectiveOutput:
        """Cross-entropy and accuracy over masked cells; how well the dictionary is used."""
        assert student.dictionary is not None
        chosen = batch.mvm_labels != IGNORED
        labels = batch.mvm_labels[chosen]
        logits = code_logits(hidden.cells[chosen], student.dictionary) / self.config.temperature
        losses = F.cross_entropy(logits, labels, reduction="none")
        one = student.dictionary.started.float()
        num_pairs = chosen.any(dim=1).sum().float()
        return ObjectiveOutput(
            loss=mean_loss(losses, epsilon=self.config.mean_epsilon),
            metrics={
                "accuracy": hit_ratio(logits.argmax(-1) == labels),
                "hidden_cells": (chosen.sum().float(), num_pairs),
                "perplexity": (student.dictionary.perplexity() * one, one),
                "dead_codes": (student.dictionary.num_dead() * one, one),
            },
        )

    def _taken_of_released(
        self, codes: torch.Tensor, seen: torch.Tensor, anchors: torch.Tensor
    ) -> torch.Tensor:
        """codes, seen [B, C], anchors [B, 1] (-1: none) -> masked cells, bool [B, C]."""
        anchor = anchors.clamp(min=0)
        drawn = (anchors >= 0) & seen.gather(1, anchor)
        return drawn & seen & (codes == codes.gather(1, anchor))

    def _taken_of_share(
        self, codes: torch.Tensor, seen: torch.Tensor, anchors: torch.Tensor
    ) -> torch.Tensor:
        """codes, seen [B, C], anchors [B, C] (an order of all cells; -1: none) -> hidden, bool
        [B, C]."""
        turn = anchors.argsort(dim=1)
        same = (codes[:, :, None] == codes[:, None, :]) & seen[:, :, None] & seen[:, None, :]
        earlier = turn[:, None, :] < turn[:, :, None]
        num_seen = seen.sum(dim=1, keepdim=True)
        wanted = self.config.share * num_seen
        sizes = same.sum(dim=2)
        brings = seen & ~(same & earlier).any(dim=2) & (sizes <= self.MOST * num_seen - wanted)
        before = (earlier * (sizes * brings)[:, None, :]).sum(dim=2)
        taken = brings & (before < wanted) & (anchors >= 0)
        return (same & taken[:, None, :]).any(dim=2)


def code_logits(hidden: torch.Tensor, dictionary: Dictionary) -> torch.Tensor:
    """Cosines of outputs [M, D] and codes, in float32: [M, K]. A zero code has cosine 0."""
    with in_float32(hidden):
        return F.normalize(hidden.float(), dim=-1) @ F.normalize(dictionary.codes, dim=-1).T
