"""Phrase-region alignment (KD-VLP, arXiv 2109.10504). Settings: `pretrain.pra`."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from stages.pretrain.batch import Batch
from stages.pretrain.config import PraConfig
from stages.pretrain.objectives.objective import Objective, Scored, mean_loss, share
from stages.student.heads import weighted_mean
from stages.student.network import Cells, Hidden, Student


class Pra(Objective):
    """Make a phrase similar to the regions whose label means the same.

    t [D] = mean of the fusion's outputs over the phrase's pieces, v_r [D] = mean over the cells of
    region r; p = softmax over r of cos(t, v_r) / student.pra_temperature; q = softmax over r of
    similarity(phrase, label_r) / target_temperature, both over the regions of the picture.
    loss = mean over phrases of KL(q || p). Strange texts are left out: distillation stores
    similarities of a picture's own phrases only.

    `region` "object" is the paper's: regions are the teacher's objects. "cell" (ours): regions are
    the cells themselves, and an object's q is spread evenly over its cells. Cells of no object then
    count as wrong, so a phrase can be found in a picture without any box.
    """

    name = "pra"

    def __init__(self, config: PraConfig) -> None:
        self.config = config

    def mask(
        self, batch: Batch, tokenizer: PreTrainedTokenizerFast, random: np.random.Generator
    ) -> None:
        """Nothing is hidden: the similarities are the answer."""

    def score(self, student: Student, cells: Cells, hidden: Hidden, batch: Batch) -> Scored:
        """KL divergence over phrases; how often the best region is one of the target's best."""
        regions = batch.regions[batch.picture]
        exists = (batch.label >= 0)[batch.picture]
        target = self._target(batch, exists)
        if self.config.region == "object":
            vectors, real = weighted_mean(regions, hidden.cells), exists
        else:
            spread = regions.float() / regions.sum(dim=-1, keepdim=True).clamp(min=1)
            target, vectors, real = target @ spread, hidden.cells, cells.inside[batch.picture]
        logits = student.align_head(weighted_mean(batch.phrases, hidden.text), vectors)
        log_p = logits.masked_fill(~real[:, None], float("-inf")).log_softmax(dim=-1)
        used = batch.phrases.any(dim=-1) & exists.any(dim=-1, keepdim=True)
        used = used & batch.matched[:, None]
        target, log_p = target[used], log_p[used]
        losses = torch.where(target > 0, target * (target.clamp(min=1e-9).log() - log_p), 0.0)
        best = target.gather(1, log_p.argmax(dim=-1, keepdim=True))[:, 0]
        return Scored(
            loss=mean_loss(losses.sum(dim=-1)),
            metrics={"accuracy": share(best > 0.5 * target.amax(dim=-1))},
        )

    def _target(self, batch: Batch, exists: torch.Tensor) -> torch.Tensor:
        """q over the objects: [B, P, O]; zeros for a picture without objects."""
        logits = batch.similarity / self.config.target_temperature
        logits = logits.masked_fill(~exists[:, None], float("-inf"))
        return logits.softmax(dim=-1).nan_to_num()
