"""Prefetches micro-batches to a GPU, one ahead of the network.

A copy from pageable memory blocks the process until the GPU has done all that was queued. From
pinned memory, and on a stream of its own, it overlaps with the network.
"""

from __future__ import annotations

from typing import Any

import torch


class DevicePrefetcher:
    """Copies micro-batches to `device`, the next one while the network runs. On a CPU nothing is
    copied ahead."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._started: tuple[Any, Any] | None = None

    def start(self, batch: Any) -> None:
        """Begin to copy `batch`, which `take` is called with next. Does not block."""
        if self._stream is None:
            return
        pinned = batch.map_tensors(torch.Tensor.pin_memory)
        with torch.cuda.stream(self._stream):
            self._started = batch, pinned.to(self._device)

    def take(self, batch: Any) -> Any:
        """`batch` on the device, for use on the current stream."""
        if self._stream is None:
            return batch.to(self._device)
        if self._started is None or self._started[0] is not batch:
            self.start(batch)
        assert self._started is not None
        _, copy = self._started
        self._started = None
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)

        def used(tensor: torch.Tensor) -> torch.Tensor:
            # Or the next copy might take its memory while the network still reads it.
            tensor.record_stream(current)
            return tensor

        return copy.map_tensors(used)
