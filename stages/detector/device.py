"""The device that a process computes on."""

from __future__ import annotations

import os

import torch


def pick_device() -> torch.device:
    """This process's GPU among those of its node, by LOCAL_RANK, which every launcher sets; the
    first where it is not set, the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", local_rank % torch.cuda.device_count())
