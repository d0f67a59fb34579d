"""The student's heads, one for each objective.

Letters: B pairs, M rows picked by an objective, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from stages.student.config import ITC_TEMPERATURES
from stages.student.query_bank import QueryBank


class MlmHead(nn.Module):
    """Hidden states to word pieces: BERT's transform, then the word embeddings themselves."""

    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.transform = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden: torch.Tensor, word_embeddings: torch.Tensor) -> torch.Tensor:
        """hidden [M, D], word_embeddings [V, D] -> logits [M, V]."""
        hidden = self.norm(F.gelu(self.transform(hidden)))
        return F.linear(hidden, word_embeddings, self.bias)


class TiedMlmHead(nn.Module):
    """Hidden states to word pieces by the word embeddings alone (SOHO's released code)."""

    def forward(self, hidden: torch.Tensor, word_embeddings: torch.Tensor) -> torch.Tensor:
        """hidden [M, D], word_embeddings [V, D] -> logits [M, V]."""
        return F.linear(hidden, word_embeddings)


class ItmHead(nn.Module):
    """[CLS] to "does the text belong to the picture": BERT's pooler and two logits (no, yes)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.pool = nn.Linear(hidden_size, hidden_size)
        self.classify = nn.Linear(hidden_size, 2)

    def forward(self, cls: torch.Tensor) -> torch.Tensor:
        """cls [B, D] -> logits [B, 2]."""
        return self.classify(torch.tanh(self.pool(cls)))


class LinearItmHead(nn.Module):
    """[CLS] to two logits (no, yes) without pooler or bias (SOHO's released code)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.classify = nn.Linear(hidden_size, 2, bias=False)

    def forward(self, cls: torch.Tensor) -> torch.Tensor:
        """cls [B, D] -> logits [B, 2]."""
        return self.classify(cls)


class ObjectHead(nn.Module):
    """A region vector to the teacher's label logits and to the teacher's feature."""

    def __init__(self, hidden_size: int, num_labels: int, feature_size: int) -> None:
        super().__init__()
        self.transform = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.label = nn.Linear(hidden_size, num_labels)
        self.feature = nn.Linear(hidden_size, feature_size)

    def forward(self, region: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """region [M, D] -> label logits [M, num_labels], features [M, feature_size]."""
        hidden = self.norm(F.gelu(self.transform(region)))
        return self.label(hidden), self.feature(hidden)


class AlignHead(nn.Module):
    """Phrase and region vectors to similarities: cosine over a temperature.

    With a `size` E, of a linear map of each, D to E (ours), so that alignment leaves the vectors
    themselves alone.
    """

    def __init__(self, temperature: float, hidden_size: int = 0, size: int = 0) -> None:
        super().__init__()
        self.temperature = temperature
        self.phrase = nn.Linear(hidden_size, size) if size else nn.Identity()
        self.region = nn.Linear(hidden_size, size) if size else nn.Identity()

    def forward(self, phrases: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        """phrases [B, P, D], regions [B, R, D] -> similarities [B, P, R], not in half precision."""
        phrases = F.normalize(self.phrase(phrases), dim=-1)
        regions = F.normalize(self.region(regions), dim=-1)
        with in_float32(phrases):
            return single(phrases) @ single(regions).transpose(1, 2) / self.temperature


class ContrastiveHead(nn.Module):
    """Pictures and texts as unit vectors of one space (ALBEF, arXiv 2107.07651, section 3.2).

    A text's vector is a linear map of the mean over its word pieces. A picture's is a linear map of
    its cells, weighed by attention with one learned query a head; with no heads, of their mean.
    ALBEF takes the [CLS] outputs of two Transformers instead; here the text goes through the
    student's Transformer alone, without cells, and pictures have no Transformer of their own
    (ours).
    Letters: N pictures, C cells, B texts, T word pieces, D hidden size, E size of the vectors.
    """

    def __init__(
        self,
        hidden_size: int,
        size: int,
        num_heads: int,
        temperature: float,
        text_layers: int = 1,
        dropout: float = 0.0,
        bank: QueryBank | None = None,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.bank = bank
        self.num_heads = num_heads
        if num_heads:
            self.cell_norm = nn.LayerNorm(hidden_size)
            self.attend = nn.Linear(hidden_size, num_heads)
            self.value = nn.Linear(hidden_size, hidden_size)
        self.picture = nn.Linear(hidden_size, size)
        self.text = nn.Linear(text_layers * hidden_size, size)
        self.log_temperature = nn.Parameter(torch.tensor([math.log(temperature)]))

    def embed_pictures(self, cells: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """cells [N, C, D] and which of them are no padding, bool [N, C] -> unit vectors [N, E]."""
        if not self.num_heads:
            mean = weighted_mean(inside[:, None], cells)[:, 0]
            return F.normalize(self.picture(self.dropout(mean)), dim=-1)
        cells = self.cell_norm(cells)
        weights = self.attend(cells).masked_fill(~inside[..., None], -torch.inf).softmax(dim=1)
        values = self.value(cells).unflatten(-1, (self.num_heads, -1))
        pooled = torch.einsum("nch,nchd->nhd", weights, values).flatten(1)
        return F.normalize(self.picture(self.dropout(pooled)), dim=-1)

    def embed_texts(self, hidden: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """What the Transformer makes of texts alone, one or more layers of it side by side
        [B, T, L x D], and bool [B, T] which pieces are no padding -> unit vectors [B, E]."""
        mean = weighted_mean(real[:, None], hidden)[:, 0]
        return F.normalize(self.text(self.dropout(mean)), dim=-1)

    def compare(self, texts: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        """Unit vectors [B, E] and [N, E] -> cosines over the learned temperature [B, N], not
        in half precision."""
        with in_float32(texts):
            cosines = single(texts) @ single(pictures).T
        return cosines / self._temperature()

    def compare_without_hubs(self, texts: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        """`compare`, with the hubness of each text and of each picture by the bank taken from the
        cosines (querybank normalisation): [B, N]. The same as `compare` with an empty bank, or
        without one."""
        scores = self.compare(texts, pictures)
        if self.bank is None:
            return scores
        with in_float32(texts):
            hubness = self.bank.hubness_of_texts(single(texts))[
                :, None
            ] + self.bank.hubness_of_pictures(single(pictures))
        return scores - hubness / self._temperature()

    def _temperature(self) -> torch.Tensor:
        low, high = (math.log(bound) for bound in ITC_TEMPERATURES)
        return single(self.log_temperature).clamp(low, high).exp()


def in_float32(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """A context without autocast, in which float32 stays float32, for the device of `tensor`."""
    if tensor.is_meta:  # which has no autocast
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def single(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32 where it is of half precision, else as it is."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def weighted_mean(weights: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Mean of the hidden states [B, T, D] that weights [B, M, T] (bool) pick: [B, M, D].

    A row that picks nothing (padding) gives zeros.
    """
    weights = weights.to(hidden.dtype)
    return weights @ hidden / weights.sum(dim=-1, keepdim=True).clamp(min=1)
