"""An exponential moving average of trainable weights, in float32."""

from __future__ import annotations

import torch
from torch import nn


class WeightCopy(nn.Module):
    """The learning weights of `network` as float32 buffers, which checkpoints hold. Every rank has
    the full weights, so all ranks keep the same copy."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._learning = {
            name: parameter
            for name, parameter in network.named_parameters()
            if parameter.requires_grad
        }
        for name, parameter in self._learning.items():
            self.register_buffer(_buffer_name(name), parameter.detach().float().clone())

    def copies(self) -> dict[str, torch.Tensor]:
        """The buffers by the network's own names."""
        return {name: self.get_buffer(_buffer_name(name)) for name in self._learning}

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """copy += (1 - decay) x (weight - copy)."""
        weights = [parameter.detach().float() for parameter in self._learning.values()]
        torch._foreach_lerp_(list(self.copies().values()), weights, 1 - decay)


def _buffer_name(name: str) -> str:
    """Buffers' names have no dots."""
    return name.replace(".", "/")
