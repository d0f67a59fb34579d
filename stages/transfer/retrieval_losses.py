"""Losses of finetuning on retrieval. Letters: R captions, K candidates, N pictures."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def matching_loss(log_odds: torch.Tensor) -> torch.Tensor:
    """Of log odds [R, K], the first of each row the right pair's."""
    first = torch.zeros(len(log_odds), dtype=torch.long, device=log_odds.device)
    matched = torch.zeros_like(log_odds)
    matched[:, 0] = 1
    alone = F.binary_cross_entropy_with_logits(log_odds, matched)
    return F.cross_entropy(log_odds, first) + alone


def contrastive_loss(contrast: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Of logits [R, N] and each text's picture [R]: the mean of both ways, a picture's texts
    sharing its target."""
    is_own = F.one_hot(own, contrast.shape[1]).to(contrast)
    to_texts = contrast.log_softmax(dim=0)[:, own.unique()]
    shares = is_own[:, own.unique()]
    return (
        F.cross_entropy(contrast, own) - (shares / shares.sum(dim=0) * to_texts).sum(dim=0).mean()
    ) / 2
