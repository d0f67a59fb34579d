"""res5 on boxes: its cheaper first block is the plain one, forward and backward."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest
import torch
from torch import Tensor

from stages.detector.checkpoints.families import DETECTRON2
from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.model.res5_head import BLOCK_BOXES_CPU, Res5BoxHead
from stages.detector.net_config import BoxConfig, ResNetConfig, TeacherConfig
from stages.detector.ops.pooler import Level

BACKBONE = ResNetConfig(
    stem_width=4,
    stage_widths=(6, 8, 12, 16),
    bottleneck_widths=(4, 4, 4, 6),
    num_blocks=(1, 1, 1, 2),
)
BOXES = BoxConfig(head="res5", feature_size=16, num_bins=14, sampling_ratio=0)
STRIDE = 16
# Inside, over each edge, far outside, without a side, without any, inside out, the whole map.
ODD = torch.tensor(
    [
        [20.0, 30, 90, 70],
        [-40, 10, 30, 60],
        [60, -30, 100, 20],
        [100, 60, 190, 140],
        [-300, -300, -200, -200],
        [50, 20, 50, 90],
        [33, 33, 33, 33],
        [80, 80, 20, 20],
        [0, 0, 144, 96],
    ]
)


def make_head(backbone: ResNetConfig = BACKBONE, config: BoxConfig = BOXES) -> Res5BoxHead:
    torch.manual_seed(0)
    head = Res5BoxHead(backbone, config)
    for parameter in head.parameters():  # biases that matter
        torch.nn.init.normal_(parameter, std=0.5)
    return head.double()


def make_level(num_pictures: int = 2) -> Level:
    torch.manual_seed(1)
    feature = torch.randn(num_pictures, 12, 6, 9, dtype=torch.float64, requires_grad=True)
    return Level(feature, STRIDE)


def make_boxes(num: int) -> Tensor:
    random = torch.Generator().manual_seed(2)
    corners = torch.rand(num, 2, 2, generator=random) * torch.tensor([200.0, 140.0]) - 30
    return torch.cat([corners.amin(1), corners.amax(1)], 1)


def run(
    head: Res5BoxHead, boxes: list[Tensor], monkeypatch: pytest.MonkeyPatch, *, maps_first: bool
) -> list[Tensor]:
    """Features and the gradients of a sum of them, to the map and all weights."""
    level, chosen = make_level(len(boxes)), []
    maps = Res5BoxHead._maps

    def choose(self: Res5BoxHead, feature: Tensor, num_boxes: int) -> object:
        chosen.append(maps(self, feature, 10**9 if maps_first else 0))
        return chosen[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Res5BoxHead, "_maps", choose)
        features = head([level], boxes)
    assert (chosen[0] is not None) == maps_first
    weights = torch.linspace(-1, 1, features.numel(), dtype=features.dtype).view_as(features)
    return [
        features,
        *torch.autograd.grad((features * weights).sum(), [level.feature, *head.parameters()]),
    ]


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize(
    "backbone",
    [
        BACKBONE,
        dataclasses.replace(BACKBONE, stride_in_1x1=False),
        dataclasses.replace(BACKBONE, res5_dilation=2),
    ],
)
def test_both_ways_are_one(
    backbone: ResNetConfig, sampling_ratio: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: RoIAlign of the map, then the whole block, in double precision; boxes of two
    pictures, over the map's edge, beyond it, without area."""
    head = make_head(backbone, dataclasses.replace(BOXES, sampling_ratio=sampling_ratio))
    boxes = [torch.cat([ODD, make_boxes(20)]).double(), make_boxes(3).double()]
    plain = run(head, boxes, monkeypatch, maps_first=False)
    mapped = run(head, boxes, monkeypatch, maps_first=True)
    assert plain[0].shape == (32, 16) and plain[0].std() > 0.1
    for one, other in zip(plain, mapped):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_cheaper_way_is_taken() -> None:
    """Oracle: counts by hand. 54 cells a picture against 7 x 7 bins a box with the stride in both
    1x1 convolutions; with it in the 3x3, conv1 (72 weights) reads 14 x 14 bins and the shortcut
    (192) 7 x 7: 23520 for one box against 54 * 264 = 14256. A maximum never goes by the maps."""
    feature = make_level(1).feature
    head = make_head()
    assert head._maps(feature, 1) is None and head._maps(feature, 2) is not None
    head = make_head(dataclasses.replace(BACKBONE, stride_in_1x1=False))
    assert head._maps(feature, 1) is not None and head._maps(feature, 0) is None
    head = make_head(config=dataclasses.replace(BOXES, pooling="pool"))
    assert head._maps(feature, 1000) is None


@pytest.mark.parametrize("pooling", ["align", "pool"])
def test_boxes_do_not_hang_on_their_number(pooling: Literal["align", "pool"]) -> None:
    """Oracle: the first and last boxes alone; and no box at all gives no feature."""
    head = make_head(config=dataclasses.replace(BOXES, pooling=pooling))
    level, boxes = make_level(1), make_boxes(BLOCK_BOXES_CPU + 5).double()
    with torch.no_grad():
        features = head([level], [boxes])
        for rows in (slice(0, 3), slice(BLOCK_BOXES_CPU - 1, None)):
            torch.testing.assert_close(features[rows], head([level], [boxes[rows]]))
        assert head([level], [boxes[:0]]).shape == (0, 16)


def test_a_full_size_net_runs() -> None:
    """Oracle: shapes; R101-C4 as in the Visual Genome teachers, untrained, on a small picture."""
    net = TeacherConfig(
        backbone=ResNetConfig(num_blocks=(3, 4, 23, 3)),
        proposals=dataclasses.replace(DETECTRON2.proposals, num_candidates=50, num_proposals=9),
        boxes=dataclasses.replace(
            DETECTRON2.boxes,
            feature_size=2048,
            has_no_attribute=True,
            attribute_embedding_size=256,
            attribute_hidden_size=512,
        ),
        choice=dataclasses.replace(DETECTRON2.choice, score_threshold=0.0),
    )
    torch.manual_seed(0)
    model = FasterRCNN(net, num_labels=1600, num_attributes=400).eval()
    (found,) = model.find(torch.randn(1, 3, 64, 64), [(64, 64)])
    assert found.boxes.shape[0] == len(found.labels) > 0
    assert found.features.shape[1] == 2048 and found.probabilities.shape[1] == 1600
    assert found.attributes is not None and found.attributes.shape[1] == 400
    assert sum(parameter.numel() for parameter in model.parameters()) > 60_000_000
