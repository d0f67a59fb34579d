"""torch.distributed for stages that run without DeepSpeed, such as training a teacher: pictures are
divided among ranks, and results are summed or gathered."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

PATIENCE = datetime.timedelta(hours=6)
"""How long a rank waits for the others, one of which may have far more pictures to score."""
T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's number among `size` that were started together."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over all ranks, without a gradient. A collective."""
        values = values.detach().clone()
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every rank the sums of the ranks' gradients; a parameter that learns and has none
        counts as zeros. A collective."""
        if self.size == 1:
            return
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in learning]
        summed = torch.cat([gradient.flatten() for gradient in own])
        torch.distributed.all_reduce(summed)
        parts = summed.split([gradient.numel() for gradient in own])
        for parameter, part in zip(learning, parts, strict=True):
            gradient = part.view_as(parameter)
            # Optimizers of torch that are fused take gradients to have the parameter's strides.
            if not parameter.is_contiguous():
                gradient = torch.empty_like(parameter).copy_(gradient)
            parameter.grad = gradient

    def gathered(self, value: Any) -> list[Any]:
        """Every rank's value, by rank. A collective."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def own(self, things: Sequence[T]) -> Sequence[T]:
        """This rank's share of some things: every `size`th."""
        return things[self.rank :: self.size]

    def interleaved(self, own: Sequence[T]) -> list[T]:
        """What every rank made of its `own` things, in the order in which they were shared out. A
        collective."""
        parts = self.gathered(list(own))
        most = max(map(len, parts))
        return [part[row] for row in range(most) for part in parts if row < len(part)]

    def agreed(self, is_so: bool) -> bool:
        """What rank 0 holds for true. A collective, which every rank waits in."""
        if self.size == 1:
            return is_so
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        said = torch.tensor([int(is_so)], device=device)
        torch.distributed.broadcast(said, src=0)
        return bool(said.item())


@contextmanager
def joined_ranks(*, on_gpus: bool) -> Iterator[Ranks]:
    """The ranks that a launcher started (RANK, WORLD_SIZE), by NCCL where their tensors are on
    GPUs, else by gloo; a process that no launcher started is alone. None leaves the block before
    all have come to its end, unless by an error."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    if on_gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    backend = "nccl" if on_gpus else "gloo"
    torch.distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        ranks = Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
        yield ranks
        ranks.agreed(True)
    finally:
        torch.distributed.destroy_process_group()
