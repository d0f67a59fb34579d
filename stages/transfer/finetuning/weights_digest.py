"""A hash of the weights of all ranks, to detect partial predictions of other weights."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


@torch.no_grad()
def weights_digest(module: nn.Module) -> str:
    """A hash of all weights and buffers, the same on every rank. A collective.

    Weights that ZeRO 3 has cut are hashed piece by piece, so that their hash is another one on
    another number of ranks.
    """
    digest = hashlib.sha256()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        own = getattr(tensor, "ds_tensor", tensor).detach().cpu().contiguous()
        digest.update(f"{name} {own.dtype} {tuple(own.shape)}".encode())
        digest.update(own.view(-1).view(torch.uint8).numpy().tobytes())
    found: list[str] = [""] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, digest.hexdigest())
    return hashlib.sha256("".join(sorted(set(found))).encode()).hexdigest()
