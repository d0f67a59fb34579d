"""Weights of full-size detectors without training, for models that are compared or timed.

Trained weights are other people's and large; with random ones activations blow up or fade, and a
detector sees nothing. Here a photograph runs through the layers while they are made: each
normalisation gets the mean and variance of what it sees, each predictor the spread that makes
decisions clear. Names, shapes and the order of channels (blue green red) are those of detectron2's
checkpoints, read by `read_net` and by detectron2.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

NUM_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
PIXEL_MEAN = (103.53, 116.28, 123.675)  # blue green red
RPN, ROI = "proposal_generator.rpn_head.", "roi_heads."
# Standard deviations of what the predictors give over the photograph.
OBJECTNESS, ANCHOR_DELTA, CLASS_LOGIT, BOX_DELTA = 2.0, 0.2, 3.0, 1.0
MOST_WINDOWS = 64  # parts of the photograph that stand for proposals


@torch.no_grad()
def make_weights(
    photograph: Tensor, *, depth: int, has_pyramid: bool, num_labels: int, width: int = 64
) -> dict[str, np.ndarray]:
    """Weights of a ResNet of `depth` (50 or 101) with a pyramid (FPN) or without (C4), by name.

    photograph: uint8 RGB [H, W, 3], of the size that the net will see. width: channels of the
    stem; 64 is full size. The stride of a stage is in its first 1x1 convolution.
    """
    maker = _Maker()
    x = photograph.flip(2).permute(2, 0, 1)[None] - torch.tensor(PIXEL_MEAN)[:, None, None]
    prefix = "backbone.bottom_up." if has_pyramid else "backbone."
    x = maker.normalised(prefix + "stem.conv1", x, width, 7, 2).relu()
    x = functional.max_pool2d(x, 3, 2, 1)
    levels = []
    for stage in range(4 if has_pyramid else 3):
        x = maker.stage(
            f"{prefix}res{stage + 2}",
            x,
            NUM_BLOCKS[depth][stage],
            width << stage,
            first_stride=1 if stage == 0 else 2,
        )
        levels.append(x)
    if has_pyramid:
        levels = maker.pyramid(levels, width * 4)
        windows = _windows(levels[:4], 7).flatten(1)
        hidden = maker.layer(ROI + "box_head.fc1", windows, width * 16).relu()
        features = maker.layer(ROI + "box_head.fc2", hidden, width * 16).relu()
        num_anchors = 3
    else:
        levels = levels[-1:]
        features = maker.stage(
            ROI + "res5", _windows(levels, 14), NUM_BLOCKS[depth][3], width * 8, first_stride=2
        ).mean((2, 3))
        num_anchors = 15
    hidden = maker.layer(RPN + "conv", levels[0], levels[0].shape[1], 3).relu()
    maker.predictor(RPN + "objectness_logits", hidden, num_anchors, OBJECTNESS)
    maker.predictor(RPN + "anchor_deltas", hidden, num_anchors * 4, ANCHOR_DELTA)
    maker.predictor(ROI + "box_predictor.cls_score", features, num_labels + 1, CLASS_LOGIT)
    maker.predictor(ROI + "box_predictor.bbox_pred", features, num_labels * 4, BOX_DELTA)
    return {name: tensor.numpy() for name, tensor in maker.weights.items()}


class _Maker:
    """Makes layers and applies them; `weights` holds what was made."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def normalised(self, name: str, x: Tensor, width: int, kernel: int, stride: int = 1) -> Tensor:
        """A convolution and a frozen normalisation that takes its numbers from `x` [B, C, H, W]."""
        self.weights[f"{name}.weight"] = _draw(name, (width, x.shape[1], kernel, kernel))
        x = functional.conv2d(x, self.weights[f"{name}.weight"], None, stride, kernel // 2)
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3)) + 1e-5
        # The last convolution of a residual branch starts small, so that the sum does not grow.
        scale, shift = (
            torch.full((width,), 0.2 if name.endswith("conv3") else 1.0),
            _draw(f"{name}.shift", (width,)) * 0.1,
        )
        norm = {"weight": scale, "bias": shift, "running_mean": mean, "running_var": variance}
        self.weights |= {f"{name}.norm.{part}": value for part, value in norm.items()}
        return functional.batch_norm(x, mean, variance, scale, shift, eps=1e-5)

    def stage(
        self, name: str, x: Tensor, num_blocks: int, width: int, *, first_stride: int
    ) -> Tensor:
        """Bottleneck blocks of inner channels `width`; four times as many come out."""
        for number in range(num_blocks):
            block, stride = f"{name}.{number}", first_stride if number == 0 else 1
            y = self.normalised(f"{block}.conv1", x, width, 1, stride).relu()
            y = self.normalised(f"{block}.conv2", y, width, 3).relu()
            y = self.normalised(f"{block}.conv3", y, width * 4, 1)
            if number == 0:
                x = self.normalised(f"{block}.shortcut", x, width * 4, 1, stride)
            x = (x + y).relu()
        return x

    def pyramid(self, levels: list[Tensor], width: int) -> list[Tensor]:
        """Levels p2 to p5 of res2 to res5."""
        outputs: list[Tensor] = []
        above = None
        for number, level in reversed(list(enumerate(levels, start=2))):
            x = self.layer(f"backbone.fpn_lateral{number}", level, width, 1)
            if above is not None:
                larger = functional.interpolate(above, scale_factor=2.0, mode="nearest")
                x = x + larger[:, :, : x.shape[2], : x.shape[3]]
            above = x
            outputs.insert(0, self.layer(f"backbone.fpn_output{number}", x, width, 3))
        return outputs

    def layer(self, name: str, x: Tensor, width: int, kernel: int = 0) -> Tensor:
        """A convolution with bias, or a linear layer where `kernel` is 0; spread 1 comes out."""
        return self.predictor(name, x, width, 1.0, kernel if x.ndim == 4 else 0)

    def predictor(self, name: str, x: Tensor, width: int, spread: float, kernel: int = 1) -> Tensor:
        """The same, of another spread: each output's mean over `x` near 0, deviation `spread`."""
        shape = (width, x.shape[1]) + (kernel, kernel) * (x.ndim == 4)
        weight = _draw(name, shape)
        y = _apply(x, weight, torch.zeros(width))
        weight *= spread / y.transpose(0, 1).flatten(1).std(1).mean()
        bias = -_apply(x, weight, torch.zeros(width)).transpose(0, 1).flatten(1).mean(1)
        bias += 0.1 * spread * _draw(f"{name}.bias", (width,))
        self.weights |= {f"{name}.weight": weight, f"{name}.bias": bias}
        return _apply(x, weight, bias)


def _apply(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if weight.ndim == 2:
        return functional.linear(x, weight, bias)
    return functional.conv2d(x, weight, bias, padding=weight.shape[2] // 2)


def _draw(name: str, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers over the square root of a row's inputs, seeded by the name."""
    numbers = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    inputs = np.prod(shape[1:]) if len(shape) > 1 else 1
    return torch.from_numpy((numbers / np.sqrt(inputs)).astype(np.float32))


def _windows(levels: list[Tensor], side: int) -> Tensor:
    """Squares [R, C, side, side] cut from the levels [1, C, H, W], evenly spread."""
    parts = [
        level[0].unfold(1, side, side // 2).unfold(2, side, side // 2).flatten(1, 2).transpose(0, 1)
        for level in levels
        if min(level.shape[2:]) >= side
    ]
    windows = torch.cat(parts)
    step = -(-len(windows) // MOST_WINDOWS)
    return windows[::step].contiguous()
