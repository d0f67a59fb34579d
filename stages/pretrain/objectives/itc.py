"""Image-text contrastive learning (ALBEF, arXiv 2107.07651). Settings: `pretrain.itc`."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from stages.pretrain.data.batch import Batch, Comparison
from stages.pretrain.objectives.config import ItcConfig
from stages.pretrain.objectives.objective import (
    Objective,
    ObjectiveOutput,
    hit_ratio,
    mean_loss,
    text_and_cells,
)
from stages.student.network import Student
from stages.student.outputs import Cells, Hidden


class Itc(Objective):
    """Of all pictures and texts of a micro-batch, predict which belong together (ours; of ALBEF).

    s [B, N] = cos(t_b, v_n) / temperature, with t_b the vector of text b alone and v_n that of
    picture n alone, by the student's contrastive head; the temperature is learned.
    loss = (L_texts + L_pictures) / 2. L_texts = mean over texts b of the cross-entropy of
    softmax_n s[b, n] to its picture. L_pictures = mean over pictures n of the cross-entropy of
    softmax_b s[b, n] to its texts, each with the same share. `label_smoothing` e mixes a share e of
    the uniform distribution into both targets.

    Texts are read as they are, before ITM deals out other ones and MLM masks them. Those that the
    source calls false of their picture are left out. Only what a micro-batch holds is compared, so
    the loss is the same on any number of ranks; it needs large micro-batches.

    As ALBEF in training, with `queue_size` or `soft_targets` above 0 (stages.pretrain.
    momentum_contrast): b is compared with the vectors that a momentum copy makes of the
    micro-batch's pictures and made of those in the queue, and the target is a (softmax of the
    copy's own logits) + (1 - a) (the target above), a = `soft_targets`.
    """

    name = "itc"
    fuses = False
    contrasts = True
    labels = ("itc/texts", "itc/pictures")

    def __init__(self, config: ItcConfig) -> None:
        self.config = config

    def mask(
        self, batch: Batch, tokenizer: PreTrainedTokenizerFast, random: np.random.Generator
    ) -> None:
        """Nothing is masked."""

    def find(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The pairs whose text is true of its picture, and the pictures that have such a text."""
        pairs = batch.is_true.nonzero()[:, 0]
        rows = batch.first_row[batch.picture[pairs]]
        has_text = (batch.first_row[:, None] == rows).any(dim=1)
        return {"itc/texts": pairs[None], "itc/pictures": has_text.nonzero()[:, 0][None]}

    def output_mask(self, batch: Batch) -> torch.Tensor:
        """None of the fusion's outputs."""
        return text_and_cells(batch, None, None)

    def score(
        self, student: Student, cells: Cells, hidden: Hidden, batch: Batch
    ) -> ObjectiveOutput:
        """The loss; how often a text finds its picture, and a picture one of its texts."""
        pairs, with_text = (self.places(batch, name)[0] for name in self.labels)
        texts, pictures = batch.comparisons or compare_within(batch, pairs, with_text)
        of_texts, of_pictures = self._cross_entropies(texts), self._cross_entropies(pictures)
        mean_texts, mean_pictures = (batch.mean_labels.get(name) for name in self.labels)
        return ObjectiveOutput(
            loss=(mean_loss(of_texts, mean_texts) + mean_loss(of_pictures, mean_pictures)) / 2,
            metrics={
                "text_accuracy": hit_ratio(_finds(texts.logits, texts.own)),
                "picture_accuracy": hit_ratio(_finds(pictures.logits, pictures.own)),
            },
        )

    def _cross_entropies(self, compared: Comparison) -> torch.Tensor:
        """A row's cross-entropy to its target: [M]."""
        target = compared.own / compared.own.sum(dim=1, keepdim=True)
        if compared.soft is not None:
            target = torch.lerp(target, compared.soft, compared.soft_share)
        smoothing = self.config.label_smoothing
        target = (1 - smoothing) * target + smoothing / max(1, target.shape[1])
        return -(target * compared.logits.float().log_softmax(dim=1)).sum(dim=1)


def compare_within(
    batch: Batch, pairs: torch.Tensor, pictures: torch.Tensor
) -> tuple[Comparison, Comparison]:
    """The texts of these pairs with all pictures, and these pictures with those texts."""
    assert batch.contrast is not None
    logits = batch.contrast.float()[pairs]
    own = batch.first_row[batch.picture[pairs], None] == batch.first_row
    return (
        Comparison(logits=logits, own=own),
        Comparison(logits=logits.T[pictures], own=own.T[pictures]),
    )


def _finds(logits: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Whether a row's best column is a right one: [M, K] twice -> bool [M]."""
    if not logits.numel():
        return right.new_zeros(len(right))
    return right.gather(1, logits.argmax(dim=1, keepdim=True))[:, 0]
