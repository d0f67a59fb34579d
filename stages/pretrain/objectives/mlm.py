"""Masked language modelling (BERT, arXiv 1810.04805; both papers). Settings: `pretrain.mlm`."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from stages.pretrain.data.batch import Batch
from stages.pretrain.objectives.config import MlmConfig
from stages.pretrain.objectives.objective import (
    Objective,
    ObjectiveOutput,
    at,
    hit_ratio,
    mean_loss,
    text_and_cells,
)
from stages.student.network import Student
from stages.student.outputs import Cells, Hidden

IGNORED = -100


class Mlm(Objective):
    """Mask word pieces, predict them from the rest of the text and the picture.

    loss = mean over masked pieces of -log softmax(E g(h) + b)[piece], with h [D] the fusion's
    output at the piece, g BERT's transform and E [V, D] the word embeddings (SOHO: E h, without
    transform and bias, by `student.mlm_head`). Of the chosen pieces
    80 % become [MASK], 10 % a random ordinary piece, 10 % stay. With `whole_words` (ours; of BERT's
    later models) a word's first piece decides for all of them; what becomes of each is drawn apart,
    as in BERT's code. Logits are made for chosen pieces
    only (SOHO's released code makes them for every token).
    """

    name = "mlm"
    labels = ("mlm",)

    def __init__(self, config: MlmConfig) -> None:
        self.config = config

    def mask(
        self, batch: Batch, tokenizer: PreTrainedTokenizerFast, random: np.random.Generator
    ) -> None:
        """Choose pieces, keep them in `batch.mlm_labels`, change `batch.tokens`."""
        draw = torch.from_numpy(random.random(batch.tokens.shape, dtype=np.float32))
        fate = torch.from_numpy(random.random(batch.tokens.shape, dtype=np.float32))
        words = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
        other = torch.from_numpy(random.choice(words, batch.tokens.shape))
        chosen = batch.ordinary & (draw < self.config.probability)
        if self.config.whole_words:
            chosen = spread_over_words(chosen, batch.words)
        # Mismatched texts are masked too, even if nothing is learned from them: if only matched
        # texts held [MASK], ITM could infer the answer from that.
        learned = chosen & batch.matched[:, None] if self.config.matched_only else chosen
        learned = learned.index_fill(0, batch.swapped, False)
        batch.mlm_labels = torch.where(learned, batch.tokens, IGNORED)
        replaced = torch.where(fate < 0.8, tokenizer.mask_token_id, other)
        batch.tokens = torch.where(chosen & (fate < 0.9), replaced, batch.tokens)

    def find(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The chosen pieces: pair and place."""
        return {"mlm": (batch.mlm_labels != IGNORED).nonzero().T}

    def output_mask(self, batch: Batch) -> torch.Tensor:
        """The chosen pieces."""
        return text_and_cells(batch, batch.mlm_labels != IGNORED, None)

    def score(
        self, student: Student, cells: Cells, hidden: Hidden, batch: Batch
    ) -> ObjectiveOutput:
        """Cross-entropy and accuracy over the chosen pieces."""
        places = self.places(batch, "mlm")
        logits = student.mlm_head(at(hidden.text, places), student.word_embeddings)
        labels = at(batch.mlm_labels, places)
        losses = F.cross_entropy(logits, labels, reduction="none")
        mean_labels = batch.mean_labels.get("mlm")
        loss = mean_loss(losses, mean_labels, epsilon=self.config.mean_epsilon)
        return ObjectiveOutput(
            loss=loss, metrics={"accuracy": hit_ratio(logits.argmax(-1) == labels)}
        )


def spread_over_words(chosen: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """The pieces of the words whose first piece is chosen: bool [B, T] and words [B, T], -1 for
    what is of no word -> bool [B, T]."""
    is_first = words >= 0
    is_first[:, 1:] &= words[:, 1:] != words[:, :-1]
    of_word = torch.zeros_like(chosen)
    rows, columns = (is_first & chosen).nonzero(as_tuple=True)
    of_word[rows, words[rows, columns]] = True
    return of_word.gather(1, words.clamp(min=0)) & (words >= 0)
