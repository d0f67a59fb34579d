"""Image-text matching (both papers). Settings: `pretrain.itm`."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from stages.pretrain.batch import Batch
from stages.pretrain.config import ItmConfig
from stages.pretrain.objectives.objective import (
    Objective,
    ObjectiveOutput,
    mean_loss,
    share,
    text_and_cells,
)
from stages.student.network import Cells, Hidden, Student


class Itm(Objective):
    """Give some pictures the text of another one, tell which.

    loss = mean over pairs of -log softmax(W tanh(U h_cls))[matched], h_cls [D] the fusion's output
    at [CLS] (SOHO: softmax(W h_cls), by `student.itm_head`). A strange text comes from another
    picture of the same micro-batch, so that it costs no reading; SOHO's released code takes the
    first caption of another group of the same file, and KD-VLP's way is not known. With one picture
    a micro-batch there is no strange text. A text that the source itself calls false (NLVR) is
    mismatched already and stays as it is.
    """

    name = "itm"

    def __init__(self, config: ItmConfig) -> None:
        self.config = config

    def mask(
        self, batch: Batch, tokenizer: PreTrainedTokenizerFast, random: np.random.Generator
    ) -> None:
        """Replace texts (with their phrases) and clear `batch.matched` there."""
        picture = batch.picture.numpy()
        source = np.arange(len(picture))
        for pair in np.flatnonzero(random.random(len(picture)) < self.config.mismatch):
            strange = np.flatnonzero(picture != picture[pair])
            if batch.matched[pair] and len(strange):
                source[pair] = random.choice(strange)
        batch.matched = batch.matched & torch.from_numpy(source == np.arange(len(picture)))
        for name in ("tokens", "ordinary", "phrases"):
            setattr(batch, name, getattr(batch, name)[source])

    def reads(self, batch: Batch) -> torch.Tensor:
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
        loss = mean_loss(F.cross_entropy(logits, labels, reduction="none"))
        return ObjectiveOutput(loss=loss, metrics={"accuracy": share(logits.argmax(-1) == labels)})
