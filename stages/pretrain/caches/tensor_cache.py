"""A cache of tensors in memory, up to a limit."""

from __future__ import annotations

from collections.abc import Hashable

import torch


class TensorCache:
    """Tensors by key, in 16 bits on the CPU, up to `limit_bytes` in this process; a tensor that no
    longer fits is not cached."""

    def __init__(self, limit_bytes: int) -> None:
        self._bytes_left = limit_bytes
        self._tensors: dict[Hashable, torch.Tensor] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._tensors

    def __getitem__(self, key: Hashable) -> torch.Tensor:
        return self._tensors[key]

    def discard(self, key: Hashable) -> None:
        """Make room, where there is such a tensor."""
        if key in self._tensors:
            self._bytes_left += 2 * self._tensors.pop(key).numel()

    def add(self, key: Hashable, tensor: torch.Tensor) -> None:
        """Cache a copy of `tensor` where there is room for it."""
        num_bytes = 2 * tensor.numel()
        if num_bytes <= self._bytes_left:
            self._bytes_left -= num_bytes
            self._tensors[key] = tensor.to("cpu", torch.float16, copy=True)
