"""BatchNorm over the pictures of all ranks.

torch.nn.SyncBatchNorm does so on GPUs only, and requires a picture on every rank.
Letters: B pictures of this rank, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class SyncedNorm(nn.BatchNorm2d):
    """In training mean and variance are those of all ranks' pictures; each rank calls it, also with
    none."""

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] -> the same, normalised. A collective in training."""
        if not self.training:
            return super().forward(features)
        whole = features.float()
        count = torch.full((1,), whole.numel() / whole.shape[1], device=whole.device)
        sums = torch.cat([whole.sum((0, 2, 3)), whole.square().sum((0, 2, 3)), count])
        sums = _SumOverRanks.apply(sums)
        of_values, of_squares = (sums[:-1] / sums[-1]).chunk(2)
        variance = (of_squares - of_values.square()).clamp(min=0)
        self._note(of_values.detach(), variance.detach(), float(sums[-1]))
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - of_values * scale
        return (whole * scale[:, None, None] + shift[:, None, None]).to(features.dtype)

    @torch.no_grad()
    def _note(self, mean: Tensor, variance: Tensor, count: float) -> None:
        """The running statistics, as torch.nn.BatchNorm2d has them."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / max(count - 1, 1), self.momentum)


class _SumOverRanks(torch.autograd.Function):
    """The sum over ranks; the gradient too, since each rank's loss is a part of one loss."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        summed = values.clone()
        torch.distributed.all_reduce(summed)
        return summed

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        summed = gradient.contiguous().clone()
        torch.distributed.all_reduce(summed)
        return summed


def sync_norms(model: nn.Module) -> None:
    """Give every BatchNorm of `model` the statistics of all ranks."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                synced = SyncedNorm(child.num_features, eps=child.eps, momentum=child.momentum)
                synced.load_state_dict(child.state_dict())
                setattr(parent, name, synced)
