"""Box arithmetic of the teacher against sums written out for one pair of boxes at a time."""

from __future__ import annotations

import math

import pytest
import torch

from stages.detector.ops.boxes import (
    MAX_LOG_SCALE,
    area,
    clip,
    decode,
    encode,
    iou,
    is_nonempty,
    sides,
)

RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def random_boxes(num: int, random: torch.Generator) -> torch.Tensor:
    corner = torch.rand(num, 2, generator=random) * 60
    return torch.cat([corner, corner + 1 + torch.rand(num, 2, generator=random) * 40], 1)


def slow_iou(a: list[float], b: list[float]) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = [max(x1 - x0, 0) * max(y1 - y0, 0) for x0, y0, x1, y1 in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if width * height > 0 else 0.0


def test_iou_agrees_with_one_pair_at_a_time() -> None:
    """Oracle: the definition, in Python numbers, also for boxes without area or inside out."""
    random = torch.Generator().manual_seed(0)
    odd = torch.tensor([[5.0, 5, 5, 9], [5, 5, 5, 5], [9, 9, 3, 3]])
    first = torch.cat([random_boxes(20, random), odd])
    second = torch.cat([random_boxes(15, random), odd])
    expected = [[slow_iou(a, b) for b in second.tolist()] for a in first.tolist()]
    torch.testing.assert_close(iou(first, second), torch.tensor(expected))


def test_iou_of_nothing_is_an_empty_matrix() -> None:
    """Oracle: the shape [N, M] with N or M of 0."""
    boxes = random_boxes(3, torch.Generator().manual_seed(0))
    assert iou(boxes, boxes[:0]).shape == (3, 0)
    assert iou(boxes[:0], boxes).shape == (0, 3)


@pytest.mark.parametrize("weights", [RPN_WEIGHTS, BOX_WEIGHTS])
def test_decode_takes_back_encode(weights: tuple[float, float, float, float]) -> None:
    """Oracle: the boxes that were encoded."""
    random = torch.Generator().manual_seed(1)
    references, targets = random_boxes(50, random), random_boxes(50, random)
    decoded = decode(references, encode(references, targets, weights), weights)
    torch.testing.assert_close(decoded, targets, atol=1e-3, rtol=1e-5)


def test_encode_is_the_formula_of_the_paper() -> None:
    """Oracle: Girshick et al., 2014, appendix C, for one pair by hand: centre moved by a quarter
    of the width and half the height, twice as wide, equally high."""
    deltas = encode(
        torch.tensor([[10.0, 10, 30, 20]]), torch.tensor([[5.0, 15, 45, 25]]), BOX_WEIGHTS
    )
    torch.testing.assert_close(deltas, torch.tensor([[2.5, 5.0, 5 * math.log(2), 0.0]]))


def test_decode_gives_each_label_its_box_and_bounds_growth() -> None:
    """Oracle: each label decoded alone; a box grows to 1000/16 times its side and no further,
    while it may shrink to nothing."""
    random = torch.Generator().manual_seed(2)
    references, deltas = random_boxes(6, random), torch.randn(6, 12, generator=random)
    alone = [decode(references, deltas[:, k : k + 4], BOX_WEIGHTS) for k in (0, 4, 8)]
    assert torch.equal(decode(references, deltas, BOX_WEIGHTS), torch.cat(alone, 1))
    wild = decode(torch.tensor([[0.0, 0, 16, 16]]), torch.tensor([[0.0, 0, 60, -60]]), RPN_WEIGHTS)
    assert wild[0, 2] - wild[0, 0] == pytest.approx(16 * math.exp(MAX_LOG_SCALE), rel=1e-5)
    assert wild[0, 3] - wild[0, 1] == pytest.approx(0, abs=1e-6)


def test_clip_and_nonempty() -> None:
    """Oracle: boxes inside, across and outside of a picture 30 high and 40 wide, by hand."""
    boxes = torch.tensor([[1.0, 2, 3, 4], [-5, -5, 50, 50], [41, 0, 60, 9], [3, 3, 3, 9]])
    clipped = clip(boxes, (30, 40))
    expected = [[1.0, 2, 3, 4], [0, 0, 40, 30], [40, 0, 40, 9], [3, 3, 3, 9]]
    assert clipped.tolist() == expected
    assert is_nonempty(clipped).tolist() == [True, True, False, False]


def test_inclusive_boxes_are_those_of_caffe() -> None:
    """Oracle: py-faster-rcnn's bbox_transform_inv and clip_boxes by hand. A box of 10 x 20 pixels
    moves by a tenth of its width and doubles its height; what comes out is a pixel too wide."""
    box = torch.tensor([[10.0, 20, 19, 39]])
    assert sides(box, inclusive=True).tolist() == [[10, 20]]
    assert area(box, inclusive=True).tolist() == [200]
    decoded = decode(box, torch.tensor([[0.1, 0, 0, math.log(2)]]), RPN_WEIGHTS, inclusive=True)
    torch.testing.assert_close(decoded, torch.tensor([[11.0, 10, 21, 50]]))
    assert clip(decoded, (50, 20), inclusive=True).tolist() == [[11, 10, 19, 49]]
    shifted = box + torch.tensor([5.0, 0, 5, 0])
    assert iou(box, shifted, inclusive=True).item() == pytest.approx(100 / 300)
