"""Gradient norms, in all and of each part of the network, before clipping.

Read between the last backward pass of a step and the optimizer's step. DeepSpeed then holds the
mean gradient over ranks and micro-batches, partitioned by ZeRO or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from stages.training.loss_scaling import loss_scale

PARTS = ("cnn", "cells", "transformer", "heads")
"""ResNet; what makes cells of its map (projection, neck, norm, mask vector); embeddings and fusion;
the heads of objectives and tasks."""
STUDENT = "student."
"""Where a module that is trained holds its student; all else in it is a head."""


def part_of(name: str) -> str:
    """The part that the student's parameter `name` belongs to."""
    first, _, rest = name.partition(".")
    if first in ("embeddings", "fusion"):
        return "transformer"
    if first.endswith("_head"):
        return "heads"
    return "cnn" if first == "grid" and rest.startswith("resnet.") else "cells"


class GradientNorms:
    """The gradient that an engine is about to step by."""

    def __init__(self, engine: Any, module: nn.Module) -> None:
        self._engine = engine
        self._parts = {
            id(parameter): PARTS.index(
                part_of(name.removeprefix(STUDENT)) if name.startswith(STUDENT) else "heads"
            )
            for name, parameter in module.named_parameters()
        }

    @torch.no_grad()
    def squares(self) -> torch.Tensor | None:
        """Sum of squares of each part [len(PARTS)], under ZeRO of this rank's share; None for
        gradients that DeepSpeed has offloaded. Nothing is read from the device."""
        if self._engine.zero_offload_optimizer() is not None:
            return None
        squares = torch.zeros(len(PARTS), device=self._engine.device)
        for gradient, parameter in self._gradients():
            norm = torch.linalg.vector_norm(gradient, dtype=torch.float32)
            squares[self._parts[id(parameter)]] += norm.square()
        return squares

    @torch.no_grad()
    def norms(self, squares: torch.Tensor | None) -> dict[str, float]:
        """`grad_norm` and `grad_norm/PART` from what `squares` gave. A collective. {} where there
        is none, or where they overflow in float16."""
        if squares is None:
            return {}
        if self._engine.zero_optimization():
            torch.distributed.all_reduce(squares)
        scaled = squares.double() / loss_scale(self._engine) ** 2
        if not scaled.isfinite().all():
            return {}
        named = {f"grad_norm/{part}": float(one) for part, one in zip(PARTS, scaled.sqrt())}
        return {"grad_norm": float(scaled.sum().sqrt()), **named}

    def _gradients(self) -> Iterator[tuple[torch.Tensor, nn.Parameter]]:
        """The gradients, or under ZeRO this rank's pieces of them, with their parameters."""
        optimizer, stage = self._engine.optimizer, self._engine.zero_optimization_stage()
        if stage == 0:
            for parameter in self._engine.module.parameters():
                if parameter.grad is not None:
                    yield parameter.grad, parameter
            return
        groups = optimizer.fp16_groups if stage == 3 else optimizer.params_in_partition
        for group, parameters in enumerate(groups):
            pieces = optimizer.averaged_gradients[group]
            # Between pieces that are summed in float32 DeepSpeed puts padding.
            yield from zip(
                (piece for piece in pieces if not getattr(piece, "_zero_padding", False)),
                parameters,
            )


@torch.no_grad()
def are_weights_finite(module: nn.Module) -> torch.Tensor:
    """Whether every weight and statistic is, bool []; under ZeRO 3 of this rank's share."""
    weights = [
        getattr(parameter, "ds_tensor", parameter).detach() for parameter in module.parameters()
    ]
    weights += [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    norms = torch.stack([torch.linalg.vector_norm(w, dtype=torch.float32) for w in weights])
    return norms.isfinite().all()
