"""Output classes of the student's networks.

Letters: N pictures, B picture-text pairs, T word pieces, C cells, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import ModelOutput


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """What the fusion makes of B pairs: `text` [B, T, D] and `cells` [B, C, D]."""

    text: torch.Tensor
    cells: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Cells:
    """What the CNN makes of N pictures: `features` [N, C, D] before masking and positions,
    `inside` bool [N, C] (not padding), and the grid's `rows` and `columns`; `codes` [N, C], the
    index of each cell's code (-1 while there are none), None without a dictionary."""

    features: torch.Tensor
    inside: torch.Tensor
    rows: int
    columns: int
    codes: torch.Tensor | None = None


@dataclass
class StudentOutput(ModelOutput):
    """What `Student.forward` gives, in transformers' manner: `logits` [B, 2], "the text does not
    belong to the picture" and "it does"; `text` [B, T, D] and `cells` [B, C, D], what the fusion
    makes of both; `inside` bool [B, C], which cells are not padding."""

    logits: torch.Tensor | None = None
    text: torch.Tensor | None = None
    cells: torch.Tensor | None = None
    inside: torch.Tensor | None = None
