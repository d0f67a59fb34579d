"""The choice of objects: detectron2's and bottom-up attention's, against loops and their own.

tests/data/golden/butd_selection.npz holds what MILVLG/bottom-up-attention.pytorch (4dbce869)
chooses from made-up proposals, by its CPU kernel, and for `strict` with its CUDA kernel's rule.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.detector.model.postprocess import (
    best_proposals,
    best_surviving_scores,
    candidates,
    detections,
)
from stages.detector.net_config import ChoiceConfig
from stages.detector.ops.boxes import iou

GOLDEN = Path(__file__).parents[3] / "data" / "golden" / "butd_selection.npz"
CASES = [("normal", 5), ("few", 1), ("many", 1), ("tiny", 1), ("edge", 1)]


def golden(case: str) -> dict[str, Tensor]:
    """Arrays of a case by their last name; the background's column left out."""
    with np.load(GOLDEN) as arrays:
        some = {
            name.removeprefix(case + "_"): torch.from_numpy(arrays[name])
            for name in arrays.files
            if name.startswith(case + "_")
        }
    return {**some, "probs": some["probs"][:, 1:]}


def choice(least: int, most: int, iou: float = 0.3) -> ChoiceConfig:
    return ChoiceConfig(
        rule="proposals", score_threshold=0.2, iou=iou, min_objects=least, max_objects=most
    )


@pytest.mark.parametrize("case, num_limits", CASES)
def test_bottom_up_attention_chooses_the_same_proposals(case: str, num_limits: int) -> None:
    """Oracle: the stored choice, to the index and in its order, and the scores to the bit: more
    than enough, too few, too many, exactly enough, fewer proposals than wanted."""
    arrays = golden(case)
    scores = best_surviving_scores(arrays["boxes"], arrays["probs"], iou=0.3)
    assert torch.equal(scores, arrays["max_conf"])
    assert len(arrays["limits"]) == num_limits
    for index, (least, most) in enumerate(arrays["limits"].tolist()):
        kept = best_proposals(arrays["boxes"], arrays["probs"], choice(least, most))
        assert torch.equal(kept, arrays[f"keep{index}"])


def test_only_an_overlap_above_the_threshold_makes_the_strict_rule() -> None:
    """Oracle: the stored choice of the rule `>`, which is `>=` from the next number on."""
    arrays = golden("edge")
    above = float(np.nextafter(np.float32(0.3), np.float32(1)))
    scores = best_surviving_scores(arrays["boxes"], arrays["probs"], iou=above)
    assert torch.equal(scores, arrays["max_conf_strict"])
    kept = best_proposals(arrays["boxes"], arrays["probs"], choice(1, 100, above))
    assert torch.equal(kept, arrays["keep_strict"])


def test_scores_below_the_floor_change_no_others() -> None:
    """Oracle: the scores without a floor, where they reach it, else 0."""
    arrays = golden("normal")
    everything = best_surviving_scores(arrays["boxes"], arrays["probs"], iou=0.3)
    for floor in (0.02, 0.2, 0.9, 1.1):
        some = best_surviving_scores(arrays["boxes"], arrays["probs"], iou=0.3, floor=floor)
        assert torch.equal(some, everything * (everything >= floor))


def test_equal_boxes_of_equal_scores_leave_the_first() -> None:
    """Oracle: by hand; where more are wanted than survive, the others follow in their order."""
    boxes = torch.tensor([[0.0, 0, 9, 9]]).repeat(4, 1)
    probabilities = torch.full((4, 2), 0.5)
    scores = best_surviving_scores(boxes, probabilities, iou=0.3)
    assert scores.tolist() == [0.5, 0, 0, 0]
    assert best_proposals(boxes, probabilities, choice(0, 5)).tolist() == [0]
    assert best_proposals(boxes, probabilities, choice(3, 5)).tolist() == [0, 1, 2]


def test_no_proposals_are_no_objects() -> None:
    """Oracle: empty answers of both rules."""
    nothing, labels = torch.zeros(0, 4), torch.zeros(0, 3)
    assert best_proposals(nothing, labels, choice(10, 100)).tolist() == []
    assert [part.tolist() for part in candidates(labels, ChoiceConfig())] == [[], []]
    empty = torch.zeros(0)
    assert detections(nothing, empty, empty, ChoiceConfig()).tolist() == []


def slow_detections(
    boxes: Tensor, probabilities: Tensor, config: ChoiceConfig
) -> list[tuple[int, int]]:
    """Pairs (proposal, label), the best first, dropped where a better one of the label overlaps."""
    pairs = [
        (proposal, label)
        for proposal in range(len(boxes))
        for label in range(boxes.shape[1])
        if float(probabilities[proposal, label]) > config.score_threshold
    ]
    pairs.sort(key=lambda pair: -float(probabilities[pair]))
    kept: list[tuple[int, int]] = []
    for proposal, label in pairs:
        box = boxes[proposal, label][None]
        if all(
            label != other or float(iou(boxes[better, other][None], box)) <= config.iou
            for better, other in kept
        ):
            kept.append((proposal, label))
    return kept[: config.max_objects]


@pytest.mark.parametrize("max_objects", [3, 1000])
def test_detections_are_those_of_the_loop(max_objects: int) -> None:
    """Oracle: `slow_detections`, with ties, empty boxes and a score at the threshold."""
    random = torch.Generator().manual_seed(0)
    corner = torch.rand(40, 3, 2, generator=random) * 20
    boxes = torch.cat([corner, corner + torch.rand(40, 3, 2, generator=random) * 15], 2)
    boxes[5:8, :, 2] = boxes[5:8, :, 0]
    probabilities = torch.randint(0, 9, (40, 3), generator=random) / 32
    config = ChoiceConfig(score_threshold=0.0625, iou=0.3, max_objects=max_objects)
    proposal, label = candidates(probabilities, config)
    kept = detections(boxes[proposal, label], probabilities[proposal, label], label, config)
    proposal, label = proposal[kept], label[kept]
    expected = slow_detections(boxes, probabilities, config)
    assert list(zip(proposal.tolist(), label.tolist())) == expected
    assert len(expected) == 3 or 20 < len(expected) < 80
