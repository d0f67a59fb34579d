"""Tensors kept in memory from one epoch to the next, up to a limit."""

from __future__ import annotations

from collections.abc import Hashable

import torch


class KeptTensors:
    """Tensors by name, in 16 bits on the CPU, up to `limit_bytes` in this process; what comes when
    that is full is not kept."""

    def __init__(self, limit_bytes: int) -> None:
        self._left = limit_bytes
        self._kept: dict[Hashable, torch.Tensor] = {}

    def __contains__(self, name: Hashable) -> bool:
        return name in self._kept

    def __getitem__(self, name: Hashable) -> torch.Tensor:
        return self._kept[name]

    def keep(self, name: Hashable, tensor: torch.Tensor) -> None:
        """Keep a copy of `tensor` where there is room for it."""
        num_bytes = 2 * tensor.numel()
        if num_bytes <= self._left:
            self._left -= num_bytes
            self._kept[name] = tensor.to("cpu", torch.float16, copy=True)
