"""Heads that give a few outputs for each row of text. Letters: R rows, P pictures a row, D hidden
size."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

ENCODER_HEAD_DROPOUT = 0.1


class ClassifierHead(nn.Module):
    """BERT's pooler on [CLS] of each picture, then two layers with GELU and LayerNorm between, as
    ViLT's task heads have."""

    def __init__(self, num_images: int, hidden_size: int, num_outputs: int) -> None:
        super().__init__()
        self.pool = nn.Linear(hidden_size, hidden_size)
        self.transform = nn.Linear(num_images * hidden_size, 2 * hidden_size)
        self.norm = nn.LayerNorm(2 * hidden_size)
        self.classify = nn.Linear(2 * hidden_size, num_outputs)

    def forward(self, cls: torch.Tensor) -> torch.Tensor:
        """cls [R, P * D] -> logits [R, num_outputs]."""
        pooled = torch.tanh(self.pool(cls.unflatten(1, (-1, self.pool.in_features))))
        return self.classify(F.gelu(self.norm(self.transform(pooled.flatten(1)))))


class EncoderHead(nn.Module):
    """A linear map of standardised inputs, with dropout: for few examples and a student that does
    not learn."""

    def __init__(self, in_size: int, num_outputs: int) -> None:
        super().__init__()
        self.standardise = Standardise(in_size, affine=False)
        self.dropout = nn.Dropout(ENCODER_HEAD_DROPOUT)
        self.classify = nn.Linear(in_size, num_outputs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs [R, in_size] -> logits [R, num_outputs]."""
        return self.classify(self.dropout(self.standardise(inputs)))


class Standardise(nn.BatchNorm1d):
    """Each input less its mean over its deviation: a batch's in training, else the running ones,
    and so for a single row, which has no deviation."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs [R, size] -> the same shape."""
        if len(inputs) > 1:
            return super().forward(inputs)
        assert self.running_mean is not None and self.running_var is not None
        return (inputs - self.running_mean) * (self.running_var + self.eps).rsqrt()
