"""Augmentations of a teacher's training pictures and their boxes: scale jitter and mirroring."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from stages.detector.net_config import PictureConfig
from stages.detector.ops.resize import enlarged
from stages.detector.training.config import TeachConfig
from stages.detector.training.labeled_pictures import Truth


def step_random(seed: int, step: int, purpose: str) -> torch.Generator:
    """The random numbers of one step, the same whenever and wherever it is run."""
    digest = hashlib.sha256(f"{seed} {step} {purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def jittered_size(config: TeachConfig, *, seed: int, step: int) -> PictureConfig:
    """How the pictures of `step` are resized: one size for all, so that few cells are
    padding."""
    factors = config.scale_jitter
    if config.late_steps and step >= config.num_steps - config.late_steps:
        factors = config.late_scale_jitter
    if len(factors) == 1 and factors[0] == 1.0:
        return config.net.picture
    random = step_random(seed, step, "scale")
    factor = factors[int(torch.randint(len(factors), (), generator=random))]
    return enlarged(config.net.picture, factor)


def draw_flips(num: int, *, seed: int, step: int) -> Tensor:
    """Which of the `num` pictures of a step are mirrored left to right: bool [num], half of them on
    average."""
    return torch.rand(num, generator=step_random(seed, step, "flip")) < 0.5


def flipped(truth: Truth, width: int) -> Truth:
    """The truth of a picture `width` pixels wide that is mirrored left to right."""
    x0, y0, x1, y1 = truth.boxes.unbind(1)
    return truth._replace(boxes=torch.stack([width - x1, y0, width - x0, y1], 1))
