"""RoIPool against a loop over the cells of every bin."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.detector.ops import roi_pool as roi_pool_file
from stages.detector.ops.roi_pool import roi_pool

STRIDE = 4
HEIGHT, WIDTH = 6, 9
# Pixels of a map of 36 x 24: inside, all of it, edges on a half cell (10 / 4 = 2.5 goes up),
# across each border, outside, a point, far larger than the map, inside out, halves below 0.
BOXES = torch.tensor(
    [
        [3.0, 5, 17, 20],
        [0, 0, 36, 24],
        [10, 6, 22, 14],
        [-9, -7, 8, 9],
        [30, 18, 50, 40],
        [60, 60, 80, 80],
        [7, 7, 7, 7],
        [-200, -150, 300, 260],
        [20, 18, 6, 4],
        [-6, -10, 10, 2],
    ]
)


def round_half_away(value: float) -> int:
    """C's round()."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def slow_roi_pool(
    feature: Tensor, boxes: Tensor, picture_index: Tensor, *, stride: int, num_bins: int
) -> Tensor:
    """Fast R-CNN's Caffe layer, a bin at a time."""
    _, num_channels, height, width = feature.shape
    out = feature.new_zeros(len(boxes), num_channels, num_bins, num_bins)
    for box, (edges, picture) in enumerate(zip(boxes.tolist(), picture_index.tolist())):
        x0, y0, x1, y1 = (round_half_away(edge / stride) for edge in edges)
        # In single precision, as the layers compute: 3 * (10 / 3) may be above 10.
        bin_height = np.float32(max(y1 - y0 + 1, 1)) / np.float32(num_bins)
        bin_width = np.float32(max(x1 - x0 + 1, 1)) / np.float32(num_bins)
        for row in range(num_bins):
            top = min(max(math.floor(np.float32(row) * bin_height) + y0, 0), height)
            bottom = min(max(math.ceil(np.float32(row + 1) * bin_height) + y0, 0), height)
            for column in range(num_bins):
                left = min(max(math.floor(np.float32(column) * bin_width) + x0, 0), width)
                right = min(max(math.ceil(np.float32(column + 1) * bin_width) + x0, 0), width)
                if bottom > top and right > left:
                    cells = feature[picture, :, top:bottom, left:right]
                    out[box, :, row, column] = cells.amax((1, 2))
    return out


@pytest.mark.parametrize("num_bins", [1, 2, 4, 7, 14])
def test_values_agree_with_the_loop(num_bins: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: `slow_roi_pool`, to the bit, with values of both signs; in chunks of any size, with
    the even bins alone, and on a map that lies channels last."""
    random = torch.Generator().manual_seed(num_bins)
    feature = torch.randn(2, 3, HEIGHT, WIDTH, generator=random)
    scattered = torch.randint(-8, 32, (30, 4), generator=random) * 2.0
    boxes = torch.cat([BOXES, scattered])
    index = torch.randint(0, 2, (len(boxes),), generator=random)
    expected = slow_roi_pool(feature, boxes, index, stride=STRIDE, num_bins=num_bins)
    how = dict(stride=STRIDE, num_bins=num_bins)
    assert torch.equal(roi_pool(feature, boxes, index, **how), expected)
    assert (expected[5] == 0).all() and (expected < 0).any()
    even = roi_pool(feature, boxes, index, bin_step=2, **how)
    assert torch.equal(even, expected[:, :, ::2, ::2])
    monkeypatch.setattr(roi_pool_file, "CHUNK_BINS", 5)
    channels_last = feature.contiguous(memory_format=torch.channels_last)
    assert torch.equal(roi_pool(channels_last, boxes, index, **how), expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1)])
def test_maps_of_one_cell_a_side(shape: tuple[int, int]) -> None:
    """Oracle: `slow_roi_pool` where a window has no second cell."""
    feature = torch.randn(1, 2, *shape, generator=torch.Generator().manual_seed(1))
    index = torch.zeros(len(BOXES), dtype=torch.long)
    how = dict(stride=STRIDE, num_bins=3)
    assert torch.equal(
        roi_pool(feature, BOXES, index, **how), slow_roi_pool(feature, BOXES, index, **how)
    )


def test_no_boxes_give_no_rows() -> None:
    """Oracle: the shape [0, C, Q, Q]."""
    feature = torch.zeros(1, 3, HEIGHT, WIDTH)
    out = roi_pool(
        feature,
        torch.zeros(0, 4),
        torch.zeros(0, dtype=torch.long),
        stride=STRIDE,
        num_bins=5,
        bin_step=2,
    )
    assert out.shape == (0, 3, 3, 3)
