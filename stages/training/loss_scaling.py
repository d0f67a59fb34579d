"""The factor of losses in float16, without which small gradients are zeros there.

DeepSpeed has a dynamic one for `fp16`: halved by a step whose gradients are not finite, which
leaves the weights, and doubled after so many that are (`fp16.loss_scale_window` of a `ds_config`).
`autocast-fp16` has the same one. What DeepSpeed 0.19.8 itself takes for `torch_autocast` in float16
is PyTorch's GradScaler, and under ZeRO that does not train: gradients are clipped before they are
divided by the scale, the scale is updated once a group of parameters within a step, and not at all
where a gradient is not finite (`ZeroOptimizer._optimizer_step` and `step`).
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler


def scales_losses(engine: Any) -> bool:
    """Whether the engine multiplies losses before the backward pass."""
    in_autocast = engine.torch_autocast_enabled() and engine.torch_autocast_dtype() == torch.float16
    return bool(engine.fp16_enabled() or in_autocast)


def loss_scale(engine: Any) -> float:
    """What the engine multiplies losses by, 1 where it does not."""
    return float(engine.optimizer.loss_scale) if scales_losses(engine) else 1.0


def is_lowest(engine: Any) -> bool:
    """Whether the engine scales losses and cannot lower the scale any more."""
    return scales_losses(engine) and loss_scale(engine) <= engine.optimizer.loss_scaler.min_scale


def set_loss_scaler(engine: Any) -> None:
    """Let a ZeRO optimizer scale losses as the precision asks, after the engine is made and after a
    checkpoint is loaded, which brings its own scaler.

    At the lowest scale DeepSpeed would raise an error without the step's samples; here the step is
    skipped, and the training loop counts it.
    """
    optimizer = engine.optimizer
    if not hasattr(optimizer, "loss_scaler"):
        return
    optimizer.torch_autocast_gradscaler = None
    if scales_losses(engine) != isinstance(optimizer.loss_scaler, DynamicLossScaler):
        optimizer.loss_scaler = (
            DynamicLossScaler(dtype=torch.float16, **engine.dynamic_loss_scale_args())
            if scales_losses(engine)
            else LossScaler(scale=1.0)
        )
    optimizer.dynamic_loss_scale = optimizer.loss_scaler.dynamic
    optimizer.loss_scaler.raise_error_at_min_scale = False
