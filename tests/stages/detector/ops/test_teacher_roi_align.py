"""RoIAlign, pooling over levels and anchors against loops that follow the definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stages.detector.model.anchors import cell_anchors, grid_anchors
from stages.detector.ops.pooler import Level, pick_levels, pool
from stages.detector.ops.roi_align import roi_align

STRIDE = 4
HEIGHT, WIDTH = 6, 9
# Pixels of a map of 36 x 24: inside, all of it, across each border, outside, a line, a point,
# within one cell of the border, tiny, far larger than the map, inside out.
BOXES = torch.tensor(
    [
        [3.0, 5, 17, 20],
        [0, 0, 36, 24],
        [-9, -7, 8, 9],
        [30, 18, 50, 40],
        [60, 60, 80, 80],
        [-40, 3, -20, 9],
        [10, 4, 10, 20],
        [4, 8, 20, 8],
        [7, 7, 7, 7],
        [-3, 4, -1, 9],
        [37, 20, 39, 23],
        [12, 12, 12.5, 12.25],
        [-200, -150, 300, 260],
        [20, 18, 6, 4],
    ]
)


def bilinear(feature: Tensor, y: float, x: float) -> Tensor:
    """A channel vector at (y, x) in cells, as Mask R-CNN's code defines it at the borders."""
    height, width = feature.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return feature.new_zeros(len(feature))
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    y0, x0 = math.floor(y), math.floor(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    top = feature[:, y0, x0] * (x0 + 1 - x) + feature[:, y0, x1] * (x - x0)
    bottom = feature[:, y1, x0] * (x0 + 1 - x) + feature[:, y1, x1] * (x - x0)
    return top * (y0 + 1 - y) + bottom * (y - y0)


def slow_roi_align(
    feature: Tensor,
    boxes: Tensor,
    picture_index: Tensor,
    *,
    stride: int,
    num_bins: int,
    sampling_ratio: int,
) -> Tensor:
    """One sample at a time; differentiable, so it is the oracle of the gradient too."""
    boxes = boxes / stride - 0.5
    out = []
    for box, picture in zip(boxes.tolist(), picture_index.tolist()):
        x0, y0, x1, y1 = box
        num_down = sampling_ratio or max(math.ceil((y1 - y0) / num_bins), 0)
        num_across = sampling_ratio or max(math.ceil((x1 - x0) / num_bins), 0)
        for row in range(num_bins):
            for column in range(num_bins):
                total = feature.new_zeros(feature.shape[1])
                for i in range(num_down):
                    for j in range(num_across):
                        y = y0 + (y1 - y0) * (row + (i + 0.5) / num_down) / num_bins
                        x = x0 + (x1 - x0) * (column + (j + 0.5) / num_across) / num_bins
                        total = total + bilinear(feature[picture], y, x)
                out.append(total / max(num_down * num_across, 1))
    return torch.stack(out).view(len(boxes), num_bins, num_bins, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("num_bins, sampling_ratio", [(1, 1), (3, 2), (2, 3), (1, 0), (3, 0)])
def test_values_and_gradient_agree_with_the_loop(num_bins: int, sampling_ratio: int) -> None:
    """Oracle: `slow_roi_align` and what autograd makes of it, in float64; with 0, as many samples
    as a bin spans cells, and nothing for a box without area or inside out."""
    random = torch.Generator().manual_seed(0)
    feature = torch.randn(2, 3, HEIGHT, WIDTH, generator=random, dtype=torch.float64)
    scattered = torch.rand(10, 4, generator=random, dtype=torch.float64) * 60 - 12
    boxes = torch.cat([BOXES.double(), scattered])
    index = torch.randint(0, 2, (len(boxes),), generator=random)
    results = []
    for function in (roi_align, slow_roi_align):
        leaf = feature.clone().requires_grad_()
        out = function(
            leaf, boxes, index, stride=STRIDE, num_bins=num_bins, sampling_ratio=sampling_ratio
        )
        upstream = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape)
        (out * upstream).sum().backward()
        results.append((out.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1])
    assert results[0][0][4].abs().max() == 0, "a box far outside reads nothing"
    if sampling_ratio == 0:
        assert not results[0][0][[6, 7, 8, 13]].any()


@pytest.mark.parametrize("num_bins, bin_step", [(14, 2), (7, 2), (7, 3), (2, 5)])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
def test_a_step_leaves_bins_out(num_bins: int, bin_step: int, sampling_ratio: int) -> None:
    """Oracle: every so many of all bins, to the bit."""
    feature = torch.randn(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2))
    index = torch.zeros(len(BOXES), dtype=torch.long)
    how = dict(stride=STRIDE, num_bins=num_bins, sampling_ratio=sampling_ratio)
    everything = roi_align(feature, BOXES, index, **how)
    some = roi_align(feature, BOXES, index, bin_step=bin_step, **how)
    assert torch.equal(some, everything[:, :, ::bin_step, ::bin_step])


def test_boxes_that_read_nothing_are_0() -> None:
    """Oracle: zeros, where not one box of a call has an area to sample."""
    feature = torch.ones(1, 3, HEIGHT, WIDTH)
    out = roi_align(
        feature,
        BOXES[[6, 7, 8]],
        torch.zeros(3, dtype=torch.long),
        stride=STRIDE,
        num_bins=2,
        sampling_ratio=0,
    )
    assert out.shape == (3, 3, 2, 2) and not out.any()


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1)])
def test_maps_of_one_cell_a_side(shape: tuple[int, int], sampling_ratio: int) -> None:
    """Oracle: `slow_roi_align` where there is no next cell to interpolate with."""
    feature = torch.randn(1, 2, *shape, generator=torch.Generator().manual_seed(1))
    index = torch.zeros(len(BOXES), dtype=torch.long)
    how = dict(stride=STRIDE, num_bins=2, sampling_ratio=sampling_ratio)
    torch.testing.assert_close(
        roi_align(feature, BOXES, index, **how), slow_roi_align(feature, BOXES, index, **how)
    )


def test_no_boxes_give_no_rows_and_a_gradient_of_zeros() -> None:
    """Oracle: the shape [0, C, P, P]; training on a picture without proposals must go on."""
    feature = torch.randn(1, 3, HEIGHT, WIDTH, requires_grad=True)
    out = roi_align(
        feature,
        torch.zeros(0, 4),
        torch.zeros(0, dtype=torch.long),
        stride=STRIDE,
        num_bins=5,
        sampling_ratio=2,
    )
    assert out.shape == (0, 3, 5, 5)
    out.sum().backward()
    assert feature.grad is not None and not feature.grad.any()


def test_levels_follow_the_box_size() -> None:
    """Oracle: equation 1 of the FPN paper by hand: 224 px read stride 16, 448 px stride 32, just
    below one level finer; clipped to the levels there are; a point reads the finest."""
    sides = torch.tensor([0.0, 50, 111.9, 112, 223.9, 224, 448, 2000])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], 1)
    assert pick_levels(boxes, [4, 8, 16, 32]).tolist() == [0, 0, 0, 1, 1, 2, 3, 3]
    assert pick_levels(boxes, [8, 16]).tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_pooling_over_levels_takes_each_box_from_its_own() -> None:
    """Oracle: `slow_roi_align` on the level that `pick_levels` names, box after box, over two
    pictures with different numbers of boxes; gradients reach every level that was read."""
    random = torch.Generator().manual_seed(3)
    levels = [
        Level(torch.randn(2, 3, 32 // s, 48 // s, generator=random).requires_grad_(), s)
        for s in (8, 16)
    ]
    corner = torch.rand(7, 2, generator=random) * 12
    all_boxes = torch.cat([corner, corner + 2 + torch.rand(7, 2, generator=random) * 30], 1)
    boxes = [all_boxes[:2], all_boxes[2:]]
    how = dict(num_bins=2, sampling_ratio=2)
    pooled = pool(levels, boxes, canonical_box_px=16, **how)
    chosen = pick_levels(all_boxes, [8, 16], canonical_box_px=16)
    assert set(chosen.tolist()) == {0, 1}
    for row, (box, level) in enumerate(zip(all_boxes, chosen.tolist())):
        picture = torch.tensor([int(row >= 2)])
        expected = slow_roi_align(
            levels[level].feature, box[None], picture, stride=levels[level].stride, **how
        )
        torch.testing.assert_close(pooled[row], expected[0])
    pooled.sum().backward()
    assert all(level.feature.grad is not None and level.feature.grad.any() for level in levels)


def test_anchors_are_laid_by_row_column_size_ratio() -> None:
    """Oracle: loops; every anchor keeps the area of its size and the ratio height over width."""
    sizes, ratios = (8.0, 16.0), (0.5, 1.0, 2.0)
    anchors = grid_anchors(cell_anchors(sizes, ratios), (2, 3), 10)
    expected = []
    for row in range(2):
        for column in range(3):
            for size in sizes:
                for ratio in ratios:
                    width = math.sqrt(size * size / ratio)
                    x, y, height = 10.0 * column, 10.0 * row, width * ratio
                    expected.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    torch.testing.assert_close(anchors, torch.tensor(expected))
