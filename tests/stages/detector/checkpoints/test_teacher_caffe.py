"""Bottom-up attention's Caffe model, whole, against a slow reading of its public sources.

Oracle: `Reference`, written step by step from MILVLG/bottom-up-attention.pytorch (bua/caffe and
utils/extract_utils.py) over the checkpoint as it lies, with loops where ours has none: background
and no attribute first, blue green red, normalisation as a layer of its own, a softmax over two
logits an anchor, boxes whose last pixel counts.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from golden_nets import net_with
from torch import Tensor
from torch.nn import functional

from stages.detector.checkpoints.families import FAMILIES
from stages.detector.checkpoints.weights import read_net

NUM_LABELS, NUM_ATTRIBUTES, NUM_ANCHORS = 6, 4, 6
SIZE, SCALE = (80, 112), 1.6  # of the network's input; by what the picture was enlarged
NUM_BLOCKS = {"backbone.res2": 1, "backbone.res3": 1, "backbone.res4": 2, "roi_heads.res5": 2}
PREDICTOR = "roi_heads.box_predictor"


def make_weights(seed: int) -> dict[str, np.ndarray]:
    """A narrow checkpoint by the names of the port's caffe mode."""
    random = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}

    def put(name: str, *shape: int, gain: float = 1.4, bias: bool = False) -> None:
        noise = random.standard_normal(shape) * gain / np.sqrt(np.prod(shape[1:]))
        weights[f"{name}.weight"] = noise.astype(np.float32)
        if bias:
            weights[f"{name}.bias"] = 0.3 * random.standard_normal(shape[0]).astype(np.float32)

    def put_normalised(name: str, *shape: int, gain: float = 1.4) -> None:
        put(name, *shape, gain=gain)
        for part, middle in (
            ("weight", 1.0),
            ("bias", 0.0),
            ("running_mean", 0.0),
            ("running_var", 1.0),
        ):
            noise = 0.1 * np.abs(random.standard_normal(shape[0]))
            weights[f"{name}.norm.{part}"] = (middle + noise).astype(np.float32)
        weights[f"{name}.norm.num_batches_tracked"] = np.array(7)

    put_normalised("backbone.stem.conv1", 8, 3, 7, 7, gain=0.03)
    width_in = 8
    for width, (stage, num_blocks) in zip((16, 24, 32, 40), NUM_BLOCKS.items()):
        for number in range(num_blocks):
            block = f"{stage}.{number}"
            if number == 0:
                put_normalised(f"{block}.shortcut", width, width_in, 1, 1, gain=1.0)
            put_normalised(f"{block}.conv1", 8, width_in, 1, 1)
            put_normalised(f"{block}.conv2", 8, 8, 3, 3)
            put_normalised(f"{block}.conv3", width, 8, 1, 1, gain=0.8)
            width_in = width
    head = "proposal_generator.rpn_head"
    put(f"{head}.conv", 12, 32, 3, 3, bias=True)
    put(f"{head}.objectness_logits", 2 * NUM_ANCHORS, 12, 1, 1, bias=True)
    put(f"{head}.anchor_deltas", 4 * NUM_ANCHORS, 12, 1, 1, gain=0.3, bias=True)
    middle, sides = (
        random.uniform(4, 12, (NUM_ANCHORS, 2)),
        random.uniform(16, 70, (NUM_ANCHORS, 2)),
    )
    weights["proposal_generator.anchor_generator.cell_anchors.0"] = np.concatenate(
        [middle - sides / 2, middle + sides / 2 - 1], 1
    ).astype(np.float32)
    put(f"{PREDICTOR}.cls_score", NUM_LABELS + 1, 40, gain=4.0, bias=True)
    put(f"{PREDICTOR}.bbox_pred", 4 * (NUM_LABELS + 1), 40, bias=True)
    put(f"{PREDICTOR}.cls_embed", NUM_LABELS + 1, 5, gain=3.0)
    put(f"{PREDICTOR}.attr_linear1", 9, 45, gain=2.0, bias=True)
    put(f"{PREDICTOR}.attr_linear2", NUM_ATTRIBUTES + 1, 9, gain=3.0, bias=True)
    return weights


class Reference:
    """The port's own way; boxes are numpy's, [x0, y0, x1, y1] with the last pixel counting."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.weights = {name: torch.from_numpy(array) for name, array in weights.items()}

    def normalised(self, name: str, x: Tensor, **how: Any) -> Tensor:
        weight, norm = self.weights[f"{name}.weight"], f"{name}.norm."
        x = functional.conv2d(x, weight, **how)
        return functional.batch_norm(
            x,
            self.weights[norm + "running_mean"],
            self.weights[norm + "running_var"],
            self.weights[norm + "weight"],
            self.weights[norm + "bias"],
            eps=1e-5,
        )

    def layer(self, name: str, x: Tensor, **how: Any) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        if weight.ndim == 2:
            return functional.linear(x, weight, bias)
        return functional.conv2d(x, weight, bias, **how)

    def stage(self, name: str, x: Tensor, stride: int, dilation: int) -> Tensor:
        for number in range(NUM_BLOCKS[name]):
            block, step = f"{name}.{number}", stride if number == 0 else 1
            way_round = (
                self.normalised(f"{block}.shortcut", x, stride=step)
                if f"{block}.shortcut.weight" in self.weights
                else x
            )
            x = self.normalised(f"{block}.conv1", x, stride=step).relu()
            x = self.normalised(f"{block}.conv2", x, padding=dilation, dilation=dilation).relu()
            x = (self.normalised(f"{block}.conv3", x) + way_round).relu()
        return x

    def find(self, blue_green_red: Tensor, least: int, most: int) -> dict[str, np.ndarray]:
        """What the port writes for a picture [1, 3, H, W] without its mean: `least` to `most`
        objects."""
        x = self.normalised("backbone.stem.conv1", blue_green_red, stride=2, padding=3).relu()
        x = functional.max_pool2d(x, 3, 2, 0, ceil_mode=True)
        for stage, stride in (("res2", 1), ("res3", 2), ("res4", 2)):
            x = self.stage(f"backbone.{stage}", x, stride, 1)
        proposals = self.propose(x)
        bins = torch.stack([max_bins(x[0], box) for box in proposals])
        features = self.stage("roi_heads.res5", bins, 1, 2).mean((2, 3))
        logits = self.layer(f"{PREDICTOR}.cls_score", features)
        embedded = self.weights[f"{PREDICTOR}.cls_embed.weight"][logits.argmax(1)]
        hidden = self.layer(f"{PREDICTOR}.attr_linear1", torch.cat([features, embedded], 1)).relu()
        attributes = self.layer(f"{PREDICTOR}.attr_linear2", hidden).softmax(1).numpy()[:, 1:]
        scores, boxes = logits.softmax(1).numpy(), proposals / np.float32(SCALE)
        best = np.zeros(len(boxes), np.float32)
        for column in range(1, scores.shape[1]):
            kept = suppress(boxes, scores[:, column], 0.3)
            best[kept] = np.maximum(best[kept], scores[kept, column])
        rows = np.flatnonzero(best >= 0.2)
        if len(rows) < least:
            rows = np.argsort(-best, kind="stable")[:least]
        elif len(rows) > most:
            rows = np.argsort(-best, kind="stable")[:most]
        return {
            "boxes": proposals[rows],
            "features": features.numpy()[rows],
            "labels": scores[rows, 1:].argmax(1),
            "scores": scores[rows, 1:].max(1),
            "probabilities": scores[rows, 1:],
            "attributes": attributes[rows],
        }

    def propose(self, x: Tensor) -> np.ndarray:
        """Proposals [P, 4]: small ones are dropped before the best are taken."""
        head = "proposal_generator.rpn_head"
        hidden = self.layer(f"{head}.conv", x, padding=1).relu()
        height, width = x.shape[2:]
        scores = (
            self.layer(f"{head}.objectness_logits", hidden)
            .view(2, NUM_ANCHORS, height, width)
            .softmax(0)[1]
            .permute(1, 2, 0)
            .numpy()
        )
        deltas = (
            self.layer(f"{head}.anchor_deltas", hidden)
            .view(NUM_ANCHORS, 4, height, width)
            .permute(2, 3, 0, 1)
            .numpy()
        )
        cell = self.weights["proposal_generator.anchor_generator.cell_anchors.0"].numpy()
        boxes, kept_scores = [], []
        for row in range(height):
            for column in range(width):
                for number, anchor in enumerate(cell):
                    x0, y0, x1, y1 = anchor + np.array([column, row, column, row], np.float32) * 16
                    wide, high = x1 - x0 + 1, y1 - y0 + 1
                    dx, dy, dw, dh = deltas[row, column, number]
                    middle = x0 + wide / 2 + dx * wide, y0 + high / 2 + dy * high
                    half = np.exp(dw) * wide / 2, np.exp(dh) * high / 2
                    box = np.array(
                        [
                            middle[0] - half[0],
                            middle[1] - half[1],
                            middle[0] + half[0],
                            middle[1] + half[1],
                        ],
                        np.float32,
                    )
                    box = box.clip(0, np.array([SIZE[1] - 1, SIZE[0] - 1] * 2, np.float32))
                    sides = box[2:] - box[:2]
                    if (sides > 0).all() and (sides + 1 > 16 * SCALE).all():
                        boxes.append(box)
                        kept_scores.append(scores[row, column, number])
        kept = suppress(np.array(boxes), np.array(kept_scores), 0.7)[:300]
        return np.array(boxes)[kept]


def suppress(boxes: np.ndarray, scores: np.ndarray, iou: float) -> np.ndarray:
    """The boxes that stay, by falling score; one goes at an overlap of `iou` or more."""
    kept: list[int] = []
    areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    for row in np.argsort(-scores, kind="stable"):
        low = np.maximum(boxes[kept, :2], boxes[row, :2])
        high = np.minimum(boxes[kept, 2:], boxes[row, 2:])
        shared = (high - low + 1).clip(0).prod(1)
        if not (shared / (areas[kept] + areas[row] - shared) >= iou).any():
            kept.append(int(row))
    return np.array(kept, dtype=int)


def max_bins(feature: Tensor, box: np.ndarray) -> Tensor:
    """RoIPool of one box of a map [C, H, W]: [C, 14, 14]."""
    x0, y0, x1, y1 = (int(np.floor(edge / 16 + 0.5)) for edge in box)
    num_channels, height, width = feature.shape
    bins = torch.zeros(num_channels, 14, 14)
    high, wide = max(y1 - y0 + 1, 1) / 14, max(x1 - x0 + 1, 1) / 14
    for row in range(14):
        top, bottom = (
            int(np.clip(edge + y0, 0, height))
            for edge in (np.floor(row * high), np.ceil((row + 1) * high))
        )
        for column in range(14):
            left, right = (
                int(np.clip(edge + x0, 0, width))
                for edge in (np.floor(column * wide), np.ceil((column + 1) * wide))
            )
            if bottom > top and right > left:
                bins[:, row, column] = feature[:, top:bottom, left:right].amax((1, 2))
    return bins


@pytest.mark.parametrize(
    "seed, least, most", [(0, 10, 100), (5, 10, 100), (10, 10, 100), (8, 4, 6)]
)
def test_the_whole_model(seed: int, least: int, most: int) -> None:
    """From a checkpoint and a picture to what is reported of it, rows by falling score: filled up
    to the least, between the two, cut to the most."""
    weights = make_weights(seed)
    noise = np.random.default_rng(100 + seed).normal(0, 60, (1, 3, *SIZE)).astype(np.float32)
    picture = functional.avg_pool2d(torch.from_numpy(noise), 5, 1, 2) * 3
    with torch.no_grad():
        expected = Reference(weights).find(picture.flip(1), least, most)
    family = FAMILIES["vg-caffe"]
    family = dataclasses.replace(
        family, choice=dataclasses.replace(family.choice, min_objects=least, max_objects=most)
    )
    config, state = read_net(weights, family)
    assert config.boxes.has_no_attribute and config.proposals.hidden_width == 12
    (found,) = net_with(config, state).find(picture, [SIZE], [(SCALE, SCALE)])
    order = np.argsort(-expected["scores"], kind="stable")
    assert len(order) >= least and len(set(expected["labels"])) > 1
    assert found.labels.tolist() == expected["labels"][order].tolist()
    assert found.attributes is not None and found.attributes.shape[1] == NUM_ATTRIBUTES
    np.testing.assert_allclose(found.boxes, expected["boxes"][order], atol=5e-3)
    for name in ("scores", "probabilities", "features", "attributes"):
        np.testing.assert_allclose(
            getattr(found, name), expected[name][order], rtol=1e-4, atol=1e-5
        )


def test_what_it_measures_in_pixels_of_the_original_needs_the_scale() -> None:
    """Oracle: a ValueError that says what to pass; and another scale gives other objects."""
    config, state = read_net(make_weights(0), FAMILIES["vg-caffe"])
    model, picture = net_with(config, state), torch.randn(1, 3, *SIZE) * 60
    with pytest.raises(ValueError, match="^scales: got None.*Prepared.scale"):
        model.find(picture, [SIZE])
    few = model.proposal_network.propose(
        model.proposal_network(model.backbone(picture)), [SIZE], [(3.0, 3.0)]
    )
    many = model.proposal_network.propose(
        model.proposal_network(model.backbone(picture)), [SIZE], [(0.1, 0.1)]
    )
    assert len(few[0].boxes) < len(many[0].boxes)
