"""Recall at 1, 5, 10 of image-text retrieval, from a matrix of scores.

Ties count against: the rank of an answer is the number of wrong ones that score as high or higher,
and a score that is not a number never ranks below one. The official scripts leave ties to the sort
of the machine; theirs lie between this value and the opposite rule's.
Letters: N pictures, M texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from boxless.errors import BoxlessError

KS = (1, 5, 10)
Recalls = dict[str, dict[str, float]]


def text_ranks(scores: torch.Tensor, picture_of: torch.Tensor) -> torch.Tensor:
    """Image to text: 0-based rank of each picture's best own text, [pictures that have one]."""
    own = picture_of[None, :] == torch.arange(len(scores))[:, None]
    best_own = scores.masked_fill(~own, -math.inf).amax(dim=1, keepdim=True)
    return (~(scores < best_own) & ~own).sum(dim=1)[own.any(dim=1)]


def image_ranks(scores: torch.Tensor, picture_of: torch.Tensor) -> torch.Tensor:
    """Text to image: 0-based rank of each text's picture, [M]."""
    own = picture_of[None, :] == torch.arange(len(scores))[:, None]
    true_score = scores[picture_of, torch.arange(scores.shape[1])]
    return (~(scores < true_score) & ~own).sum(dim=0)


def recalls(scores: torch.Tensor, picture_of: torch.Tensor) -> Recalls:
    """Recall at k both ways beside chance, from scores [N, M] and each text's picture [M].

    A picture without a text of its own is only there to be confused with others.
    """
    num_pictures, num_texts = scores.shape
    text_rank, image_rank = text_ranks(scores, picture_of), image_ranks(scores, picture_of)
    num_own = torch.bincount(picture_of, minlength=num_pictures)
    texts_each = [int(n) for n in num_own if n]
    found = {}
    for k in KS:
        found[f"image_to_text_r{k}"] = {
            "value": (text_rank < k).double().mean().item(),
            "chance": sum(_chance(num_texts, n, k) for n in texts_each) / len(texts_each),
            "num": len(texts_each),
        }
        found[f"text_to_image_r{k}"] = {
            "value": (image_rank < k).double().mean().item(),
            "chance": _chance(num_pictures, 1, k),
            "num": num_texts,
        }
    return found


def fold_recalls(scores: torch.Tensor, picture_of: torch.Tensor, *, num_folds: int) -> Recalls:
    """The mean of each recall over folds of consecutive pictures with their own texts (COCO 1k: 5
    folds of the 5k test). Raises ValueError where the pictures do not make equal folds."""
    num_pictures = len(scores)
    if num_folds < 1 or num_pictures % num_folds:
        raise BoxlessError(
            f"num_folds: got {num_folds} for {num_pictures} pictures, expected a divisor"
        )
    size = num_pictures // num_folds
    folds = []
    for start in range(0, num_pictures, size):
        texts = (picture_of >= start) & (picture_of < start + size)
        folds.append(recalls(scores[start : start + size, texts], picture_of[texts] - start))
    return _mean(folds)


def _mean(folds: list[Recalls]) -> Recalls:
    def mean(values: list[Mapping[str, float]]) -> dict[str, float]:
        return {key: sum(value[key] for value in values) / len(values) for key in values[0]}

    return {name: mean([fold[name] for fold in folds]) for name in folds[0]}


def _chance(num_all: int, num_right: int, k: int) -> float:
    """Probability that k drawn of `num_all` hold at least one of `num_right`."""
    k = min(k, num_all)
    return 1 - math.comb(num_all - num_right, k) / math.comb(num_all, k)


def shortlist_shares(is_listed: torch.Tensor, picture_of: torch.Tensor) -> Recalls:
    """The share of queries whose answer is on the shortlist, bool [N, M]: no recall can be above
    it. Nothing where all pairs are on it."""
    if is_listed.all():
        return {}
    own = picture_of[None, :] == torch.arange(len(is_listed))[:, None]
    share = is_listed.double().mean().item()
    texts, pictures = (is_listed & own).any(dim=0), (is_listed & own).any(dim=1)
    return {
        f"{name}_listed": {"value": kept.double().mean().item(), "chance": share, "num": len(kept)}
        for name, kept in (("text_to_image", texts), ("image_to_text", pictures))
    }
