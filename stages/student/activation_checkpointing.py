"""Activation checkpointing: recomputes a layer's activations in the backward pass.

It saves memory and costs a second forward pass. Outputs, gradients, dropout and BatchNorm's
statistics are those of a run without it, bit for bit.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from stages.student.network import Student
from stages.student.vision.batch_norm import statistics_untouched


def checkpoint_activations(student: Student, parts: Sequence[str]) -> None:
    """Let every ResNet block that learns ("cnn") and every Transformer layer ("transformer") of a
    student in training run again in the backward pass."""
    layers: list[nn.Module] = []
    if "cnn" in parts:
        stages = student.grid.resnet.encoder.stages[student.grid.frozen_stages :]
        layers += [block for stage in stages for block in stage.get_submodule("layers").children()]
    if "transformer" in parts:
        layers += list(student.fusion.layer)
    for layer in layers:
        # The forward method, not the call: DeepSpeed's hooks stay outside and run once.
        layer.forward = functools.partial(_forward, layer, layer.forward)


def _forward(layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not layer.training:
        return forward(*args, **kwargs)
    return checkpoint(
        forward,
        *args,
        use_reentrant=False,
        # SOHO's released code moves the statistics in both passes.
        context_fn=lambda: (contextlib.nullcontext(), statistics_untouched(layer)),
        **kwargs,
    )
