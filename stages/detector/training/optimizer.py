"""A teacher's optimizer and learning rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from stages.detector.training.config import TeachConfig

DECAY = 0.1  # at each of `decay_steps`, as detectron2


def build_optimizer(
    model: nn.Module, config: TeachConfig, *, initialized: set[str] | None = None
) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW; weight decay on weights only, not on biases and normalisation.

    Parameters that are not in `initialized`, the names that published weights gave, learn
    `config.new_layers_rate` times as fast; frozen ones are left out. Each group's key `rate` is
    what its learning rate is multiplied by.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_new = initialized is not None and name not in initialized
            rate = config.new_layers_rate if is_new else 1.0
            groups.setdefault((parameter.ndim > 1, rate), []).append(parameter)
    parts: list[dict[str, Any]] = [
        {"params": parameters, "rate": rate, "weight_decay": config.weight_decay * is_weight}
        for (is_weight, rate), parameters in groups.items()
    ]
    if config.optimizer == "adamw":
        # Fused, AdamW takes a third of the time on a CPU.
        return torch.optim.AdamW(parts, lr=config.learning_rate, fused=True)
    return torch.optim.SGD(parts, lr=config.learning_rate, momentum=config.momentum)


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, config: TeachConfig) -> None:
    """Gives every group the rate of `step` (from 0)."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config) * group["rate"]


def learning_rate(step: int, config: TeachConfig) -> float:
    """Of `step` (from 0): a straight line up, then half a cosine down to nearly 0, or by the
    schedule "steps" a tenth from each of `decay_steps` on."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "steps":
        return config.learning_rate * DECAY ** sum(step >= at for at in config.decay_steps)
    done = (step - config.warmup_steps) / max(config.num_steps - config.warmup_steps, 1)
    return config.learning_rate * (1 + math.cos(math.pi * done)) / 2
