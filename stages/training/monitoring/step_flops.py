"""Floating-point operations of training steps, and their share of what the devices can do (MFU).

They are those of the model: matrix products, convolutions and attention of forward and backward
passes; what activation checkpointing computes a second time is left out. They are counted operator
by operator in one micro-batch of each start, as counting takes time. Another micro-batch has as
many more in convolutions as it has pixels, and in all else as it has places in the fusion, word
pieces and cells: 3 % from its own count where shapes differ by half (its test).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from stages.training.config import TrainingConfig
from stages.training.monitoring.peak_flops import peak_tflops

_ATEN = torch.ops.aten
CONVOLUTIONS = (_ATEN.convolution, _ATEN.convolution_backward)
FORMULAS = {
    **flop_registry,
    # Attention on processors, which PyTorch's counter does not know.
    _ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        _ATEN._scaled_dot_product_flash_attention
    ],
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _ATEN._scaled_dot_product_flash_attention_backward
    ],
}


class OperatorFlops(TorchDispatchMode):
    """Inside, adds up the operations of `convolutions` and of all `others`."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = self.others = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator and count it."""
        out = func(*args, **(kwargs or {}))
        formula = FORMULAS.get(func.overloadpacket) if hasattr(func, "overloadpacket") else None
        # In a backward pass gradients are on only where activations are computed again.
        is_again = torch._C._current_graph_task_id() != -1 and torch.is_grad_enabled()
        if formula is not None and not is_again:
            flops = formula(*args, **(kwargs or {}), out_val=out)
            if func.overloadpacket in CONVOLUTIONS:
                self.convolutions += flops
            else:
                self.others += flops
        return out


class StepFlops:
    """The operations of this rank's micro-batches since the last report, of batches with `pixels`
    [N, 3, H, W], `tokens` [R, T] and the `picture` or pictures of each row [R, ...]."""

    def __init__(self, config: TrainingConfig, *, cell_px: int, device: torch.device) -> None:
        self._cell_px, self._device = cell_px, device
        self._peak_tflops = config.peak_tflops or peak_tflops(device, config.precision)
        self._a_pixel = self._a_place = 0.0
        self._sums = [0.0, 0.0]

    @contextlib.contextmanager
    def of_micro_batch(self, batch: Any, *, is_valid: bool) -> Iterator[None]:
        """Around forward and backward pass; one that is no real micro-batch counts nothing."""
        if not is_valid:
            yield
            return
        pixels, places = self._sizes(batch)
        if not self._a_place:
            with OperatorFlops() as counted:
                yield
            self._a_pixel, self._a_place = counted.convolutions / pixels, counted.others / places
        else:
            yield
        self._sums[0] += pixels
        self._sums[1] += places

    def _sizes(self, batch: Any) -> tuple[int, int]:
        """Pixels, and places in the fusion."""
        height, width = batch.pixels.shape[2:]
        cells = -(-height // self._cell_px) * -(-width // self._cell_px)
        return batch.pixels.numel(), batch.tokens.numel() + batch.picture.numel() * cells

    def take(self, seconds: float) -> dict[str, float]:
        """`model_tflops`, 10^12 operations a second of all ranks, and `mfu` where the devices' peak
        is known, over the `seconds` since the last report; then start over. A collective."""
        flops = self._sums[0] * self._a_pixel + self._sums[1] * self._a_place
        self._sums = [0.0, 0.0]
        total, world_size = torch.tensor(flops / 1e12, device=self._device), 1
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
            world_size = torch.distributed.get_world_size()
        rate = float(total) / seconds
        if self._peak_tflops is None:
            return {"model_tflops": rate}
        return {"model_tflops": rate, "mfu": rate / (self._peak_tflops * world_size)}
