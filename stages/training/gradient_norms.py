"""The norm of the gradient, in all and of each part of the student, before it is clipped.

Reached from `stages.pretrain.loop`, between the last backward pass of a step and the step.
DeepSpeed then holds the mean gradient over ranks and micro-batches, whole or cut by ZeRO; this
reads what DeepSpeed's own norm is made of, once more, in one all-reduce.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from stages.student.network import Student

PARTS = ("cnn", "cells", "transformer", "heads")
"""ResNet; what makes cells of its map (projection, neck, norm, mask vector); embeddings and fusion;
the objectives' heads."""


def part_of(name: str) -> str:
    """The part that the student's parameter `name` belongs to."""
    first, _, rest = name.partition(".")
    if first in ("embeddings", "fusion"):
        return "transformer"
    if first.endswith("_head"):
        return "heads"
    return "cnn" if first == "grid" and rest.startswith("resnet.") else "cells"


class GradientNorms:
    """`norms()` of the gradient that an engine is about to step by."""

    def __init__(self, engine: Any, student: Student) -> None:
        self._engine = engine
        self._parts = {id(p): PARTS.index(part_of(n)) for n, p in student.named_parameters()}

    @torch.no_grad()
    def norms(self) -> dict[str, float]:
        """`grad_norm` and `grad_norm/PART`. A collective. {} where they cannot be told: gradients
        that DeepSpeed has offloaded, or that overflow in fp16."""
        if self._engine.zero_offload_optimizer() is not None:
            return {}
        squares = torch.zeros(len(PARTS), device=self._engine.device)
        for gradient, parameter in self._gradients():
            squares[self._parts[id(parameter)]] += gradient.float().square().sum()
        if self._engine.zero_optimization():
            torch.distributed.all_reduce(squares)
        scaled = squares.double() / loss_scale(self._engine) ** 2
        if not scaled.isfinite().all():
            return {}
        named = {f"grad_norm/{part}": float(one) for part, one in zip(PARTS, scaled.sqrt())}
        return {"grad_norm": float(scaled.sum().sqrt()), **named}

    def _gradients(self) -> Iterator[tuple[torch.Tensor, torch.nn.Parameter]]:
        """The gradients, or under ZeRO this rank's pieces of them, with their parameters."""
        optimizer, stage = self._engine.optimizer, self._engine.zero_optimization_stage()
        if stage == 0:
            for parameter in self._engine.module.parameters():
                if parameter.grad is not None:
                    yield parameter.grad, parameter
            return
        groups = optimizer.fp16_groups if stage == 3 else optimizer.params_in_partition
        for group, parameters in enumerate(groups):
            yield from zip(optimizer.averaged_gradients[group], parameters)


def loss_scale(engine: Any) -> float:
    """What the engine multiplies losses by, 1 but for fp16."""
    return float(getattr(engine.optimizer, "loss_scale", 1.0)) if engine.fp16_enabled() else 1.0
