"""Checkpoints of a narrow detector by detectron2's names, as the tests of conversion need them.

The weights are random, so the net finds nothing that is there; names and shapes are those of the
model zoo.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

NUM_LABELS, NUM_ATTRIBUTES = 5, 3
LABELS = ["plate", "cup,mug", "tea spoon", "lemon", "crumb"]
ATTRIBUTES = ["gray,grey", "red", "small"]
STEM, WIDTHS, NARROW = 8, (16, 24, 32, 40), (8, 8, 8, 8)  # channels of res2 to res5
NUM_ANCHORS = 15


def c4_weights(*, num_attributes: int = 0, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of a C4 model with one block a stage, and an attribute predictor where asked for, as
    bottom-up-attention.pytorch's d2 mode names it."""
    random = np.random.default_rng(seed)
    weights = {}
    for name, shape in _shapes(num_attributes):
        noise = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)
        value = 1 + 0.1 * random.random(shape) if name.endswith("running_var") else noise
        weights[name] = value.astype(np.float32)
    return weights


def _shapes(num_attributes: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _convolution("backbone.stem.conv1", (STEM, 3, 7, 7))
    below = STEM
    for number, (width, narrow) in enumerate(zip(WIDTHS, NARROW), 2):
        block = f"backbone.res{number}.0" if number < 5 else "roi_heads.res5.0"
        yield from _convolution(f"{block}.shortcut", (width, below, 1, 1))
        yield from _convolution(f"{block}.conv1", (narrow, below, 1, 1))
        yield from _convolution(f"{block}.conv2", (narrow, narrow, 3, 3))
        yield from _convolution(f"{block}.conv3", (width, narrow, 1, 1))
        below = width
    head, size = "proposal_generator.rpn_head", WIDTHS[2]
    yield from _layer(f"{head}.conv", (size, size, 3, 3))
    yield from _layer(f"{head}.objectness_logits", (NUM_ANCHORS, size, 1, 1))
    yield from _layer(f"{head}.anchor_deltas", (4 * NUM_ANCHORS, size, 1, 1))
    yield from _layer("roi_heads.box_predictor.cls_score", (NUM_LABELS + 1, WIDTHS[3]))
    yield from _layer("roi_heads.box_predictor.bbox_pred", (4 * NUM_LABELS, WIDTHS[3]))
    if num_attributes:
        attributes = "roi_heads.attribute_predictor"
        yield f"{attributes}.obj_embed.weight", (NUM_LABELS + 1, 4)
        yield from _layer(f"{attributes}.fc.0", (6, WIDTHS[3] + 4))
        yield from _layer(f"{attributes}.attr_score", (num_attributes, 6))


def _convolution(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A convolution and its frozen normalisation."""
    yield f"{name}.weight", shape
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.norm.{part}", shape[:1]


def _layer(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def write_names(path: Path, names: list[str]) -> Path:
    """A file of names, one a line."""
    path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return path
