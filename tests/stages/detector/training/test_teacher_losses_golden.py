"""Parity of the training losses with detectron2's.

Oracle: tests/data/golden/detectron2_losses.json, four losses and the gradient norms of three layers
as detectron2's own code (commit 02b5c4e2: RPN.label_and_sample_anchors and losses,
ROIHeads.label_and_sample_proposals, FastRCNNOutputLayers.losses) gave them for the nets of
`golden_nets.py` on the two pictures of each file. Samples are larger than what there is to sample,
so that no draw plays a part.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from golden_nets import GOLDEN, arrays_of, family_of, net_of, weights_of

from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.training.config import TeachConfig
from stages.detector.training.labeled_pictures import Truth
from stages.detector.training.losses import detection_losses
from stages.detector.training.training_set import Batch

NAMES = ("c4", "fpn")
NUM_SAMPLES = 100_000  # more than there are anchors or proposals
CONFIG = TeachConfig(
    anchor_iou_low=0.3,
    anchor_iou_high=0.7,
    num_anchors=NUM_SAMPLES,
    anchor_share=1.0,
    proposal_iou=0.5,
    num_regions=NUM_SAMPLES,
    region_share=1.0,
)
LAYERS = ("proposal_network.conv", "box_predictor.cls_score", "box_predictor.bbox_pred")


def batch_of(name: str) -> Batch:
    """Both pictures of a file; true are, in whole pixels, every seventh of the boxes that
    detectron2 found."""
    golden = arrays_of(name)
    sizes = [tuple(int(side) for side in golden[f"{p}_resized_size"]) for p in "ab"]
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    pictures, truths = torch.zeros(2, 3, height, width), []
    for row, prefix in enumerate("ab"):
        h, w = sizes[row]
        array = golden[f"{prefix}_net_input"][0, ::-1, :h, :w]
        pictures[row, :, :h, :w] = torch.from_numpy(array.copy())
        boxes = torch.from_numpy(golden[f"{prefix}_boxes_resized"][::7].round())
        labels = torch.from_numpy(golden[f"{prefix}_classes"][::7].astype(np.int64))
        truths.append(Truth(boxes, labels, torch.full_like(labels, -1)))
    return Batch(["a", "b"], pictures, sizes, truths, num_of_step=2)  # type: ignore[arg-type]


def net(name: str) -> FasterRCNN:
    return net_of(weights_of(name), family_of(name)).train()


def gradient_norms(model: FasterRCNN, losses: dict[str, torch.Tensor]) -> dict[str, float]:
    model.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    norms = {}
    for layer in LAYERS:
        gradient = model.get_submodule(layer).weight.grad
        assert isinstance(gradient, torch.Tensor)
        norms[layer] = gradient.norm().item()
    return norms


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_are_detectron2_s(name: str) -> None:
    """Oracle: the file's numbers, to 1e-4 of each."""
    golden = json.loads((GOLDEN / "detectron2_losses.json").read_text())[name]
    model = net(name)
    losses = detection_losses(model, batch_of(name), CONFIG, [torch.Generator()] * 2)
    got = {key: value.item() for key, value in losses.items()}
    assert got == pytest.approx(golden["losses"], rel=1e-4)
    assert gradient_norms(model, losses) == pytest.approx(golden["gradient_norms"], rel=1e-4)


@pytest.mark.parametrize("field, value", [("anchor_iou_high", 0.6), ("proposal_iou", 0.6)])
def test_another_rule_is_noticed(field: str, value: float) -> None:
    """Oracle: with another bound of IoU the numbers are not those of the file."""
    golden = json.loads((GOLDEN / "detectron2_losses.json").read_text())["fpn"]
    config = dataclasses.replace(CONFIG, **{field: value})
    with torch.no_grad():
        losses = detection_losses(net("fpn"), batch_of("fpn"), config, [torch.Generator()] * 2)
    assert {k: v.item() for k, v in losses.items()} != pytest.approx(golden["losses"], rel=1e-3)
