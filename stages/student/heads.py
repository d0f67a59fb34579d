"""The student's heads, one an objective, kept with the network so that transfer has them too.

Reached from `stages.student.network`; the objectives in `stages.pretrain.objectives` name the
formulas. Letters: B pairs, M rows picked by an objective, D hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


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
    """Phrase and region vectors to similarities: cosine over a temperature."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, phrases: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        """phrases [B, P, D], regions [B, R, D] -> similarities [B, P, R]."""
        phrases = F.normalize(phrases, dim=-1)
        regions = F.normalize(regions, dim=-1)
        return phrases @ regions.transpose(1, 2) / self.temperature


def weighted_mean(weights: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Mean of the hidden states [B, T, D] that weights [B, M, T] (bool) pick: [B, M, D].

    A row that picks nothing (padding) gives zeros.
    """
    weights = weights.to(hidden.dtype)
    return weights @ hidden / weights.sum(dim=-1, keepdim=True).clamp(min=1)
