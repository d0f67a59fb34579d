"""Image-text matching (both papers). Settings: `pretrain.itm`."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from stages.pretrain.data.batch import Batch
from stages.pretrain.objectives.config import ItmConfig
from stages.pretrain.objectives.objective import (
    Objective,
    ObjectiveOutput,
    hit_ratio,
    mean_loss,
    text_and_cells,
)
from stages.student.network import Student
from stages.student.outputs import Cells, Hidden


class Itm(Objective):
    """Give some pictures the text of another one, and predict which.

    loss = mean over pairs of -log softmax(W tanh(U h_cls))[matched], h_cls [D] the fusion's output
    at [CLS] (SOHO: softmax(W h_cls), by `student.itm_head`). A mismatched caption comes from
    another picture of the same micro-batch, so that it costs no reading; SOHO's released code takes
    the first caption of another group of the same file, and KD-VLP's way is not known. With one
    picture a micro-batch there is no mismatched caption. `negatives` "itc" (ours; ALBEF, arXiv
    2107.07651, section 3.3): the mismatched caption is drawn by the softmax of the contrastive
    head's logits for the picture, so that texts that nearly fit come more often; it keeps its
    masks, and MLM learns nothing from it. A text that the source itself calls false (NLVR) is
    mismatched already and stays as it is.
    """

    name = "itm"
    labels = ("itm",)

    def __init__(self, config: ItmConfig) -> None:
        self.config = config
        self.contrasts = config.negatives == "itc"

    def mask(
        self, batch: Batch, tokenizer: PreTrainedTokenizerFast, random: np.random.Generator
    ) -> None:
        """Replace texts (with their phrases) and clear `batch.matched` there; with negatives by
        itc only the latter, as `mask_cells` replaces them."""
        picture = batch.first_row[batch.picture].numpy()
        source = np.arange(len(picture))
        for pair in np.flatnonzero(random.random(len(picture)) < self.config.mismatch):
            mismatched = np.flatnonzero(picture != picture[pair])
            if batch.matched[pair] and len(mismatched):
                source[pair] = random.choice(mismatched)
        batch.matched = batch.matched & torch.from_numpy(source == np.arange(len(picture)))
        if self.contrasts:
            batch.swapped = (batch.is_true & ~batch.matched).nonzero()[:, 0]
            return
        for name in ("tokens", "ordinary", "words", "phrases"):
            setattr(batch, name, getattr(batch, name)[source])

    def mask_cells(self, cells: Cells, batch: Batch) -> None:
        """With negatives by itc: give the pairs that `mask` chose their texts."""
        chosen = batch.swapped
        if not self.contrasts or not len(chosen):
            return
        assert batch.contrast is not None
        logits = batch.contrast.detach().float().T[batch.picture[chosen]]
        picture = batch.first_row[batch.picture]
        own = picture[chosen, None] == picture
        chance = logits.masked_fill(own, -torch.inf).softmax(dim=1)
        # The least of exponential waiting times; torch.multinomial asks the device whether its
        # weights are any.
        texts = (chance / torch.empty_like(chance).exponential_()).argmax(dim=1)
        for name in ("tokens", "ordinary", "phrases"):
            values = getattr(batch, name).clone()
            values[chosen] = getattr(batch, name)[texts]
            setattr(batch, name, values)

    def find(self, batch: Batch) -> dict[str, torch.Tensor]:
        """All pairs."""
        return {"itm": torch.arange(len(batch.picture), device=batch.picture.device)[None]}

    def output_mask(self, batch: Batch) -> torch.Tensor:
        """[CLS]."""
        first = torch.zeros_like(batch.tokens, dtype=torch.bool)
        first[:, 0] = True
        return text_and_cells(batch, first, None)

    def score(
        self, student: Student, cells: Cells, hidden: Hidden, batch: Batch
    ) -> ObjectiveOutput:
        """Cross-entropy and accuracy over all pairs."""
        logits = student.itm_head(hidden.text[:, 0])
        labels = batch.matched.long()
        losses = F.cross_entropy(logits, labels, reduction="none")
        loss = mean_loss(losses, batch.mean_labels.get("itm"))
        return ObjectiveOutput(
            loss=loss, metrics={"accuracy": hit_ratio(logits.argmax(-1) == labels)}
        )
