"""A cache of tensors in memory, up to a limit, and in a folder where there is one."""

from __future__ import annotations

from collections.abc import Hashable

import torch

from stages.pretrain.caches.disk_cache import DiskCache


class TensorCache:
    """Tensors by key, in 16 bits on the CPU, up to `limit_bytes` in this process; a tensor that no
    longer fits is not cached.

    stored: a folder beside, whose tensors are cached too, and to which `store` adds new ones.
    """

    def __init__(self, limit_bytes: int, stored: DiskCache | None = None) -> None:
        self._bytes_left = limit_bytes
        self._tensors: dict[Hashable, torch.Tensor] = {}
        self._stored = stored
        self._new: dict[str, torch.Tensor] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._tensors or (self._stored is not None and key in self._stored)

    def __getitem__(self, key: Hashable) -> torch.Tensor:
        if key in self._tensors or self._stored is None:
            return self._tensors[key]
        read = self._stored.read(key)
        self.add(key, read)
        return read

    def discard(self, key: Hashable) -> None:
        """Make room in memory, where there is such a tensor."""
        if key in self._tensors:
            self._bytes_left += 2 * self._tensors.pop(key).numel()

    def add(self, key: Hashable, tensor: torch.Tensor) -> None:
        """Cache a copy of `tensor` in memory where there is room for it."""
        num_bytes = 2 * tensor.numel()
        if num_bytes <= self._bytes_left:
            self._bytes_left -= num_bytes
            self._tensors[key] = tensor.to("cpu", torch.float16, copy=True)

    def add_new(self, name: str, tensor: torch.Tensor) -> None:
        """As `add`; `store` then writes what there was room for."""
        self.add(name, tensor)
        if self._stored is not None and name in self._tensors:
            self._new[name] = self._tensors[name]

    def store(self) -> None:
        """Write what `add_new` took since the last call to the folder, if there is one."""
        if self._stored is not None:
            self._stored.write(self._new)
            self._new = {}
