"""BatchNorm of the CNN and the neck, with float32 statistics and optional sync over ranks.

PyTorch's layers mix a 16-bit input with float32 statistics only where the affine weights are
float32 too, which DeepSpeed casts.
Letters: N pictures, D channels, H and W sides of the map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

Policy = Literal["local", "sync", "frozen"]
"""`local`: over the pictures of a rank's micro-batch; `sync`: over those of all ranks (GPUs only);
`frozen`: by the statistics it has, which with its weights stay as they are."""


class BatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d whose statistics are float32 under any precision: in 16 bits a moving average
    with momentum 0.1 soon stops changing."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        return _apply_but_keep_statistics(self, super()._apply, fn, recurse)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [N, D, H, W], of any precision -> the same, normalised."""
        return _over_this_rank(self, x)


class SyncedBatchNorm(nn.SyncBatchNorm):
    """nn.SyncBatchNorm, which on one rank is BatchNorm, on a CPU too."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        return _apply_but_keep_statistics(self, super()._apply, fn, recurse)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [N, D, H, W], of any precision -> the same, normalised. A collective where it learns on
        several ranks; ValueError there on a CPU, by PyTorch."""
        if self.training and _world_size() > 1:
            return super().forward(x)
        return _over_this_rank(self, x)


def make_batch_norm(policy: Policy, num_channels: int) -> BatchNorm | SyncedBatchNorm:
    """A new layer; keep a frozen one in evaluation mode."""
    return (SyncedBatchNorm if policy == "sync" else BatchNorm)(num_channels)


def replace_batch_norms(net: nn.Module, policy: Policy) -> None:
    """Put ours in the place of every nn.BatchNorm2d in a new `net`; names in its state stay."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, make_batch_norm(policy, child.num_features))


def average_statistics(net: nn.Module) -> None:
    """Put the mean over all ranks in the place of each rank's running statistics, where a BatchNorm
    of `net` takes them from its own pictures: each rank has then seen all of them. A collective.

    A moving average of means is the mean of moving averages, so it matters to the result only by
    rounding how often this is done. timm's `distribute_bn` does the same, once an epoch.
    """
    if _world_size() == 1:
        return
    tensors: list[torch.Tensor] = []
    for norm in net.modules():
        if not isinstance(norm, (BatchNorm, nn.BatchNorm1d)):
            continue
        if norm.training and norm.track_running_stats:
            assert norm.running_mean is not None and norm.running_var is not None
            tensors += [norm.running_mean, norm.running_var]
    if not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    torch.distributed.all_reduce(flat)
    flat /= _world_size()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(mean.view_as(tensor))


@contextmanager
def statistics_untouched(net: nn.Module) -> Iterator[None]:
    """Within it a forward pass is the same as ever but no statistic moves: for one that is run
    again in the backward pass (SOHO's released code then counts every picture twice)."""
    norms = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _over_this_rank(norm: _BatchNorm, x: torch.Tensor) -> torch.Tensor:
    """nn.BatchNorm2d's forward pass, with affine weights in the statistics' precision."""
    mean, var, count = norm.running_mean, norm.running_var, norm.num_batches_tracked
    assert mean is not None and var is not None and count is not None
    if not norm.track_running_stats:
        # Copies: what a pass that is run again keeps must have the shapes of the first.
        mean, var = mean.clone(), var.clone()
    elif norm.training:
        count.add_(1)
    normalised = F.batch_norm(
        x.float() if x.dtype == torch.float64 else x,  # which PyTorch mixes with no other
        mean,
        var,
        norm.weight.float(),
        norm.bias.float(),
        training=norm.training,
        momentum=norm.momentum or 0.0,
        eps=norm.eps,
    )
    return normalised.to(x.dtype)


def _apply_but_keep_statistics(
    norm: _BatchNorm, apply: Callable[..., Any], fn: Callable[..., torch.Tensor], recurse: bool
) -> Any:
    """Follow the module to another device, with the statistics never to another precision."""
    kept = {id(buffer) for buffer in norm.buffers()}

    def place(tensor: torch.Tensor) -> torch.Tensor:
        moved = fn(tensor)
        is_other = id(tensor) in kept and moved.dtype != tensor.dtype
        return tensor.to(moved.device) if is_other else moved

    return apply(place, recurse)


def _world_size() -> int:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1
