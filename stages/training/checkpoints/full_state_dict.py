"""Gathers the full state dict of a network from a DeepSpeed engine.

ZeRO 3 partitions every weight over the ranks, and training in 16 bits keeps float32 weights in the
optimizer, partitioned by ZeRO too.
"""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import nn


@torch.no_grad()
def full_state_dict(engine: Any, network: nn.Module, precision: str) -> dict[str, torch.Tensor]:
    """The state of `network`, a part of the engine's module, weight by weight in the memory of rank
    0; empty elsewhere. A collective.

    precision: "training", weights as the network has them, or "fp32", the optimizer's.
    """
    own = _own_masters(engine)
    is_cut = engine.zero_optimization_partition_weights()
    state: dict[str, torch.Tensor] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        whole = None
        if precision == "fp32" and isinstance(tensor, torch.nn.Parameter):
            whole = own.get(id(tensor))
            if whole is None and tensor.requires_grad:
                whole = safe_get_full_fp32_param(tensor)
        if whole is None:
            cut = [tensor] if is_cut and isinstance(tensor, torch.nn.Parameter) else []
            with deepspeed.zero.GatheredParameters(cut, enabled=bool(cut)):
                whole = tensor.detach().to("cpu", copy=True)
        if precision == "fp32" and whole.is_floating_point():
            whole = whole.float()
        if torch.distributed.get_rank() == 0:
            state[name] = whole.cpu()
    return state


def _own_masters(engine: Any) -> dict[int, torch.Tensor]:
    """The float32 weights of 16-bit training without ZeRO, by the id of the network's weight."""
    optimizer = engine.optimizer
    if not hasattr(optimizer, "fp32_groups") or engine.zero_optimization():
        return {}
    return {
        id(short): whole
        for shorts, wholes in zip(optimizer.fp16_groups, optimizer.fp32_groups)
        for short, whole in zip(shorts, wholes)
    }
