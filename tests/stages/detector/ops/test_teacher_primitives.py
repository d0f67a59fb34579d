"""The parts of Faster R-CNN against what detectron2 makes of the same numbers.

tests/data/golden/detectron2_primitives.npz was made by detectron2 0.6 (02b5c4e2) with PyTorch
2.12.1 and torchvision 0.27.1 on CPU in single precision.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.detector.model.anchors import cell_anchors, grid_anchors
from stages.detector.net_config import PictureConfig
from stages.detector.ops.boxes import clip, decode, encode, is_nonempty
from stages.detector.ops.nms import nms
from stages.detector.ops.pooler import Level, pick_levels, pool
from stages.detector.ops.resize import prepare, resized_size
from stages.detector.ops.roi_align import roi_align

GOLDEN = Path(__file__).parents[3] / "data" / "golden" / "detectron2_primitives.npz"
DELTA_WEIGHTS = {"rpn": (1.0, 1.0, 1.0, 1.0), "roi": (10.0, 10.0, 5.0, 5.0)}
RATIOS = (0.5, 1.0, 2.0)


def golden(name: str) -> Tensor:
    with np.load(GOLDEN) as arrays:
        return torch.from_numpy(arrays[name])


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("num_bins", [7, 14])
def test_roi_align(num_bins: int, sampling_ratio: int) -> None:
    """Oracle: ROIAlignV2, values and gradient: inside, across, outside, without area, huge."""
    feature, boxes = golden("roi_features").requires_grad_(), golden("roi_boxes")
    out = roi_align(
        feature,
        boxes[:, 1:],
        boxes[:, 0].long(),
        stride=16,
        num_bins=num_bins,
        sampling_ratio=sampling_ratio,
    )
    expected = golden(f"roi_out_{num_bins}_sr{sampling_ratio}")
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    (out * golden(f"roi_upstream_{num_bins}")).sum().backward()
    expected = golden(f"roi_grad_{num_bins}_sr{sampling_ratio}")
    torch.testing.assert_close(feature.grad, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_pooling_over_levels(sampling_ratio: int) -> None:
    """Oracle: ROIPooler; boxes with sides at and just below 112, 224 and 448, and a point."""
    levels = [Level(golden(f"pooler_p{log}"), 2**log) for log in (2, 3, 4, 5)]
    boxes = golden("pooler_boxes")
    assert torch.equal(pick_levels(boxes, [4, 8, 16, 32]) + 2, golden("pooler_level"))
    out = pool(levels, [boxes], num_bins=7, sampling_ratio=sampling_ratio)
    expected = golden(f"pooler_out_sr{sampling_ratio}")
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tenths", [3, 5, 7])
def test_suppression(tenths: int) -> None:
    """Oracle: batched_nms and nms, to the index and in its order; copies and equal scores."""
    boxes, scores, classes = (golden(f"nms_{name}") for name in ("boxes", "scores", "classes"))
    kept = nms(boxes, scores, classes, threshold=tenths / 10)
    assert torch.equal(kept, golden(f"nms_keep_{tenths}"))
    kept = nms(boxes, scores, torch.zeros_like(classes), threshold=tenths / 10)
    assert torch.equal(kept, golden(f"nms_single_keep_{tenths}"))


@pytest.mark.parametrize("hundredths", [50, 75])
def test_suppression_at_the_threshold(hundredths: int) -> None:
    """Oracle: nms of overlaps of exactly the threshold, of a copy and of a box without area."""
    boxes, scores = golden("nms_exact_boxes"), golden("nms_exact_scores")
    kept = nms(boxes, scores, torch.zeros(len(boxes)), threshold=hundredths / 100)
    assert torch.equal(kept, golden(f"nms_exact_keep_{hundredths}"))


def test_anchors_of_one_level() -> None:
    """Oracle: DefaultAnchorGenerator with offset 0, as C4 models have it."""
    cell = cell_anchors((32.0, 64.0, 128.0, 256.0, 512.0), RATIOS)
    torch.testing.assert_close(cell, golden("anchors_c4_cell"), atol=1e-4, rtol=0)
    height, width = golden("anchors_c4_grid").tolist()
    anchors = grid_anchors(cell, (height, width), 16)
    torch.testing.assert_close(anchors, golden("anchors_c4"), atol=1e-4, rtol=0)


def test_anchors_of_a_pyramid() -> None:
    """Oracle: DefaultAnchorGenerator with one size a level."""
    grids = golden("anchors_fpn_grid").tolist()
    for log, (height, width) in zip(range(2, 7), grids):
        cell = cell_anchors((2.0 ** (log + 3),), RATIOS)
        expected = golden(f"anchors_fpn_p{log}_cell")
        torch.testing.assert_close(cell, expected, atol=1e-4, rtol=0)
        anchors = grid_anchors(cell, (height, width), 2**log)
        expected = golden(f"anchors_fpn_p{log}")
        torch.testing.assert_close(anchors, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("which", ["rpn", "roi"])
def test_deltas(which: str) -> None:
    """Oracle: Box2BoxTransform both ways, growth beyond its limit included."""
    source, target, deltas = golden("b2b_src"), golden("b2b_dst"), golden("b2b_deltas")
    decoded = decode(source, deltas, DELTA_WEIGHTS[which])
    torch.testing.assert_close(decoded, golden(f"b2b_apply_{which}"), atol=1e-4, rtol=1e-5)
    encoded = encode(source, target, DELTA_WEIGHTS[which])
    torch.testing.assert_close(encoded, golden(f"b2b_get_{which}"), atol=1e-5, rtol=1e-5)


def test_clipping() -> None:
    """Oracle: Boxes.clip and Boxes.nonempty of the first class, to the bit."""
    clipped = clip(golden("b2b_apply_roi")[:, :4], (250, 310))
    assert torch.equal(clipped, golden("b2b_clip_250x310"))
    assert torch.equal(is_nonempty(clipped), golden("b2b_nonempty"))


def test_pictures_resized_by_pillow() -> None:
    """Oracle: ResizeShortestEdge's bytes: enlarged, shrunk, held back, unchanged. A seventh has a
    limit for the longer side below the shorter one, which no config of ours may have."""
    picture = golden("resize_image")
    params = [pair for pair in golden("resize_params").tolist() if pair[0] <= pair[1]]
    assert len(params) == 6
    for shorter_px, longer_px in params:
        config = PictureConfig(shorter_px=shorter_px, longer_px=longer_px)
        expected = golden(f"resize_{shorter_px}_{longer_px}")
        assert torch.equal(prepare(picture, config).pixels, expected)


def test_sizes_after_resizing() -> None:
    """Oracle: ResizeShortestEdge's shapes of 17 pictures at 4 settings."""
    shapes, sizes = golden("shape_in").tolist(), golden("shape_sizes").tolist()
    for index, (height, width) in enumerate(shapes):
        for setting, (shorter_px, longer_px) in enumerate(sizes):
            config = PictureConfig(shorter_px=shorter_px, longer_px=longer_px)
            expected = golden("shape_out")[index, setting].tolist()
            assert list(resized_size((height, width), config)) == expected
