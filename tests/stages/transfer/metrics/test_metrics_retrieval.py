"""Retrieval recalls against the official code's, its folds, and bounds where scores tie."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transfer_golden import GOLDEN, golden_json

from stages.transfer.metrics.retrieval_recall import (
    KS,
    fold_recalls,
    image_ranks,
    recalls,
    text_ranks,
)

EXPECTED = golden_json("retrieval_expected.json")
NAMES = {"txt": "image_to_text", "img": "text_to_image"}


def _matrix(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and each text's picture."""
    with np.load(GOLDEN / "retrieval.npz", allow_pickle=False) as arrays:
        scores = torch.tensor(arrays[name])
    counts = EXPECTED[name].get("counts", [5])
    counts = counts * len(scores) if len(counts) == 1 else counts
    return scores, torch.arange(len(scores)).repeat_interleave(torch.tensor(counts))


def _percents(found: dict) -> dict[str, float]:
    return {
        f"{short}_r{k}": 100 * found[f"{name}_r{k}"]["value"]
        for short, name in NAMES.items()
        for k in KS
    }


def _close(got: dict[str, float], expected: dict[str, float]) -> None:
    assert got == pytest.approx({key: expected[key] for key in got}, abs=1e-8)


@pytest.mark.parametrize("name", ["tiefree", "close", "perfect", "uneven"])
def test_recalls_are_albefs(name: str) -> None:
    """Oracle: ALBEF's itm_eval, and the official ranks of each picture and text."""
    scores, picture_of = _matrix(name)
    _close(_percents(recalls(scores, picture_of)), EXPECTED[name]["albef"])
    with np.load(GOLDEN / "retrieval.npz", allow_pickle=False) as arrays:
        assert text_ranks(scores, picture_of).tolist() == arrays[f"{name}_rank_i2t"].tolist()
        assert image_ranks(scores, picture_of).tolist() == arrays[f"{name}_rank_t2i"].tolist()


@pytest.mark.parametrize("name", ["ties", "constant"])
def test_ties_count_against(name: str) -> None:
    """Oracle: the pessimistic bound, computed beside the official run, below which no tie rule
    falls."""
    scores, picture_of = _matrix(name)
    _close(
        _percents(recalls(scores, picture_of)),
        EXPECTED[name]["reference_not_official"]["pessimistic"],
    )


@pytest.mark.parametrize("name", ["fold_small", "fold_big"])
def test_folds(name: str) -> None:
    """Oracle: the mean of ALBEF over five folds, which SCAN's fold rule gives too, and the
    whole."""
    scores, picture_of = _matrix(name)
    _close(_percents(fold_recalls(scores, picture_of, num_folds=5)), EXPECTED[name]["albef_mean"])
    _close(_percents(fold_recalls(scores, picture_of, num_folds=5)), EXPECTED[name]["scan_mean"])
    _close(_percents(recalls(scores, picture_of)), EXPECTED[name]["albef_all"])
    with pytest.raises(ValueError, match="num_folds"):
        fold_recalls(scores, picture_of, num_folds=7)


def test_no_number_is_no_success() -> None:
    """Oracle: never above the official value, where a NaN sorts as the best score."""
    scores, picture_of = _matrix("nan")
    for key, value in _percents(recalls(scores, picture_of)).items():
        assert value <= EXPECTED["nan"]["albef"][key] + 1e-6


@pytest.mark.parametrize("way", ["i2t", "t2i"])
def test_a_shortlist_scores_as_albefs(way: str) -> None:
    """Oracle: ALBEF's recalls from the 16 candidates of each row, the rest at -100."""
    with np.load(GOLDEN / "retrieval.npz", allow_pickle=False) as arrays:
        scores = torch.tensor(arrays[f"shortlist_{way}"])
    scores = scores if way == "i2t" else scores.T
    got = _percents(recalls(scores, torch.arange(50).repeat_interleave(5)))
    short = "txt" if way == "i2t" else "img"
    _close({k: v for k, v in got.items() if k.startswith(short)}, EXPECTED["shortlist"]["albef"])
