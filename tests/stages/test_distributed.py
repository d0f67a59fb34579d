"""Ranks without DeepSpeed: two processes over gloo, forked from this one."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stages.distributed import Ranks, joined_ranks
from stages.pretrain.momentum_contrast import gather_rows


def on_two_ranks(work: Callable[[Ranks], Any], folder: Path) -> list[Any]:
    """What `work` gives on each of two ranks, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(2):
        pid = os.fork()
        if not pid:
            try:
                os.environ.update(
                    RANK=str(rank),
                    WORLD_SIZE="2",
                    MASTER_ADDR="127.0.0.1",
                    MASTER_PORT=str(port),
                )
                torch.set_num_threads(1)
                with joined_ranks(on_gpus=False) as ranks:
                    (folder / f"{rank}.json").write_text(json.dumps(work(ranks)))
            finally:
                os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def _work(ranks: Ranks) -> dict[str, Any]:
    layer = nn.Linear(2, 1)
    layer.weight.grad = torch.full((1, 2), 1.0 + ranks.rank)
    if ranks.is_first:
        layer.bias.grad = torch.ones(1)
    ranks.add_gradients(layer.parameters())
    assert layer.weight.grad is not None and layer.bias.grad is not None
    own = ranks.own(list(range(5)))
    rows = gather_rows(torch.full((2 * ranks.rank, 3), float(ranks.rank)))
    return {
        "total": ranks.total(torch.tensor([1, 10 * ranks.rank])).tolist(),
        "gradients": [layer.weight.grad.tolist(), layer.bias.grad.tolist()],
        "interleaved": ranks.interleaved([10 * thing for thing in own]),
        "agreed": ranks.agreed(not ranks.is_first),
        "rows": [part.tolist() for part in rows],
    }


def test_what_two_ranks_do_together(tmp_path: Path) -> None:
    """Oracle: sums and orders by hand, the same on both; a rank without a gradient, or without
    rows, counts as zeros, or none."""
    found = on_two_ranks(_work, tmp_path)
    assert (
        found[0]
        == found[1]
        == {
            "total": [2, 10],
            "gradients": [[[3.0, 3.0]], [1.0]],
            "interleaved": [0, 10, 20, 30, 40],
            "agreed": False,
            "rows": [[], [[1.0] * 3] * 2],
        }
    )


def _strides(ranks: Ranks) -> list[Any]:
    layer = nn.Conv2d(2, 3, 2, bias=False).to(memory_format=torch.channels_last)
    numbers = torch.arange(24.0).view(3, 2, 2, 2)
    layer.weight.grad = torch.empty_like(layer.weight).copy_(numbers * (1 + ranks.rank))
    ranks.add_gradients(layer.parameters())
    grad = layer.weight.grad
    return [grad.stride() == layer.weight.stride(), torch.equal(grad, numbers * 3)]


def test_summed_gradients_have_the_strides_of_their_parameters(tmp_path: Path) -> None:
    """Oracle: what autograd promises. torch's fused AdamW reads both in the order of memory, and
    with other strides would pair weights with gradients of others."""
    assert on_two_ranks(_strides, tmp_path) == [[True, True]] * 2


def test_one_rank_is_alone(tmp_path: Path) -> None:
    """Oracle: what a single process has of its own."""
    with joined_ranks(on_gpus=False) as ranks:
        assert ranks == Ranks(0, 1) and ranks.is_first and ranks.agreed(True)
        assert ranks.interleaved([1, 2]) == [1, 2] and ranks.gathered("a") == ["a"]
        assert ranks.own([1, 2]) == [1, 2]
