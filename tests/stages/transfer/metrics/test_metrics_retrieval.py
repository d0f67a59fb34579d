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


@pytest.mark.parametrize("levels", [None, 40])
def test_folds_on_ten_thousand_random_queries(levels: int | None) -> None:
    """Oracle: the rule of ALBEF's itm_eval in plain NumPy, a query and a fold at a time: the place
    of the best right item in the sorted scores; where scores tie (40 levels), of right items last
    among their equals."""
    random = np.random.default_rng(0)
    num_queries, num_folds = 0, 5
    while num_queries < 10_000:
        counts = random.integers(1, 8, 100)  # some of COCO's pictures have six or seven texts
        owner = np.repeat(np.arange(100), counts)
        scores = random.random((100, len(owner)))
        scores[owner, np.arange(len(owner))] += 0.35
        if levels:
            scores = np.floor(scores * levels) / levels
        ranks: dict[str, list[list[int]]] = {name: [] for name in NAMES.values()}
        for start in range(0, 100, 20):
            texts = np.flatnonzero((owner >= start) & (owner < start + 20))
            part, own = scores[start : start + 20][:, texts], owner[texts] - start
            ranks["image_to_text"].append([_rank(row, own == n) for n, row in enumerate(part)])
            ranks["text_to_image"].append(
                [_rank(column, np.arange(20) == own[m]) for m, column in enumerate(part.T)]
            )
        found = fold_recalls(torch.tensor(scores), torch.tensor(owner), num_folds=num_folds)
        for name, folds in ranks.items():
            for k in KS:
                wanted = sum(sum(rank < k for rank in fold) / len(fold) for fold in folds)
                assert found[f"{name}_r{k}"]["value"] == pytest.approx(
                    wanted / num_folds, abs=1e-12
                )
        num_queries += 100 + len(owner)


def _rank(scores: np.ndarray, is_right: np.ndarray) -> int:
    """The place of the best right item, wrong ones first among equals."""
    order = sorted(range(len(scores)), key=lambda item: (-scores[item], is_right[item]))
    return next(place for place, item in enumerate(order) if is_right[item])
