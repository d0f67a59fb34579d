"""An exponential moving average of the student's weights (ours; Polyak and Juditsky 1992).

Its horizon is in samples, so it means the same for any batch and any number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from stages.pretrain.weight_copy import WeightCopy


class WeightEma(WeightCopy):
    """The average of the learning weights of `network`.

    After each step average += (1 - d) x (weight - average), d = min(exp(-`samples_per_step` /
    `horizon`), (1 + k) / (10 + k)) at update k = 0, 1 ...: the second soon gives the start little
    weight (TensorFlow's rule).
    """

    def __init__(self, network: nn.Module, *, horizon: int, samples_per_step: int) -> None:
        super().__init__(network)
        self._decay = math.exp(-samples_per_step / horizon)
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        num_updates = self.get_buffer("num_updates")
        k = int(num_updates)
        self.follow(min(self._decay, (1 + k) / (10 + k)))
        num_updates += 1

    def state(self) -> dict[str, torch.Tensor]:
        """The average by the network's own names, on the CPU."""
        return {name: copy.cpu() for name, copy in self.copies().items()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network has the average for its weights until the end of the block."""
        kept = {name: parameter.detach().clone() for name, parameter in self._learning.items()}
        self._write(self.copies())
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, parameter in self._learning.items():
            parameter.copy_(tensors[name])
