"""Phrase-region alignment (KD-VLP, arXiv 2109.10504). Settings: `pretrain.pra`."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from stages.pretrain.data.batch import Batch
from stages.pretrain.objectives.config import PraConfig
from stages.pretrain.objectives.objective import Objective, at, hit_ratio, mean_loss
from stages.student.heads import in_float32
from stages.student.network import Student
from stages.student.outputs import Cells, Hidden
from stages.training.monitoring.metrics import ObjectiveOutput


class Pra(Objective):
    """Make a phrase similar to the regions whose label means the same.

    t [D] = mean of the fusion's outputs over the phrase's pieces (by `student.phrase_pooling`),
    v_r [D] = mean over the cells of region r, as `pretrain.regions` weighs them;
    p = softmax over r of cos(t, v_r) / student.pra_temperature, q = softmax over r of
    similarity(phrase, label_r) / target_temperature, both over the regions of the picture.
    loss = mean over phrases of KL(q || p), or by `divergence` KL(p || q). Mismatched texts are left
    out: distillation stores similarities of a picture's own phrases only. So are captions without
    phrases, pictures without objects, and objects without cells.

    Phrases whose largest similarity is below `min_similarity` are left out (ours): the softmax
    would point at whatever object comes nearest. `score_weight` multiplies q by the object's score,
    and brings it to sum 1 again (ours).

    `region` "object" is the paper's: regions are the teacher's objects. "cell" (ours): regions are
    the cells themselves, and an object's q is spread over its cells. Cells of no object then count
    as wrong, so a phrase can be found in a picture without any box.
    """

    name = "pra"
    labels = ("pra",)

    def __init__(self, config: PraConfig) -> None:
        self.config = config

    def mask(
        self, batch: Batch, tokenizer: PreTrainedTokenizerFast, random: np.random.Generator
    ) -> None:
        """Nothing is masked: the similarities are the answer."""

    def find(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The phrases that are learned from: pair and row."""
        exists = batch.is_object[batch.picture]
        used = batch.phrases.any(dim=-1) & exists.any(dim=-1, keepdim=True)
        used = used & batch.matched[:, None]
        if self.config.min_similarity is not None:
            known = batch.similarity.masked_fill(~exists[:, None], -torch.inf).amax(dim=-1)
            used = used & (known >= self.config.min_similarity)
        return {"pra": used.nonzero().T}

    def score(
        self, student: Student, cells: Cells, hidden: Hidden, batch: Batch
    ) -> ObjectiveOutput:
        """KL divergence over phrases; how often the best region is one of the target's best."""
        regions = batch.regions[batch.picture]
        exists = batch.is_object[batch.picture]
        used = self.places(batch, "pra")
        phrases = student.pool_phrases(batch.phrases, hidden.text)
        wanted = batch.similarity / self.config.target_temperature
        if self.config.score_weight:
            wanted = wanted + batch.score[batch.picture][:, None].clamp(min=1e-6).log()
        if self.config.region == "object":
            logits = student.align_head(phrases, regions.to(hidden.cells.dtype) @ hidden.cells)
            log_q, log_p = (at(_log_softmax(v, exists), used) for v in (wanted, logits))
        else:
            logits = student.align_head(phrases, hidden.cells)
            log_p = at(_log_softmax(logits, cells.inside[batch.picture]), used)
            with in_float32(regions):
                q = _log_softmax(wanted, exists).exp().nan_to_num() @ regions
            log_q = at(q, used).log()
        if self.config.divergence == "reverse":
            losses = divergence(log_p, log_q)
        else:
            losses = divergence(log_q, log_p)
        found = log_q.gather(1, log_p.argmax(dim=-1, keepdim=True))[:, 0]
        return ObjectiveOutput(
            loss=mean_loss(losses, batch.mean_labels.get("pra")),
            metrics={"accuracy": hit_ratio(found.exp() > 0.5 * log_q.amax(dim=-1).exp())},
        )


def divergence(log_a: torch.Tensor, log_b: torch.Tensor) -> torch.Tensor:
    """KL(a || b) of distributions in rows, from their logarithms [M, R] (-inf for 0): [M].

    Where a is 0 nothing counts, whatever b is there.
    """
    is_zero = log_a.isneginf()
    # Filled before the product: 0 times infinity has no gradient.
    difference = (log_a - log_b).masked_fill(is_zero, 0.0)
    return (log_a.exp() * difference).sum(dim=-1)


def _log_softmax(logits: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Over the last dimension of [B, P, R], where `real` [B, R]; -inf elsewhere."""
    return logits.masked_fill(~real[:, None], -torch.inf).log_softmax(dim=-1)
