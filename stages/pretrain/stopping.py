"""When training must stop: a signal, or a loss that is not finite, on any rank.

Reached from `stages.pretrain.run`. All ranks must agree before they act, or the others would wait
for ever in the next collective.
"""

from __future__ import annotations

import signal
from math import isfinite
from types import FrameType

import torch

from stages.pretrain.objectives.objective import Scored


class Stopped(Exception):
    """The run was asked to stop and has saved a checkpoint; the same command continues it."""


class Watch:
    """Notes SIGTERM and SIGINT from its making on; asks all ranks whether to stop."""

    def __init__(self) -> None:
        self._signalled = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    def everywhere(self, device: torch.device) -> bool:
        """Whether any rank was signalled. A collective: every rank calls it."""
        return _any_rank(self._signalled, device)

    def finite(
        self, loss: torch.Tensor, scores: dict[str, Scored], keys: list[str], step: int
    ) -> None:
        """Raise FloatingPointError on every rank if the loss is not finite on any, with the same
        words: which objectives, on which keys, of which rank.

        Called before the backward pass, so no optimizer has stepped. A collective.
        """
        bad = not bool(torch.isfinite(loss))
        if not _any_rank(bad, loss.device):
            return
        own = _faulty(scores, keys) if bad else ""
        found: list[str] = [""] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(found, own)
        told = "; ".join(f"rank {rank}: {words}" for rank, words in enumerate(found) if words)
        raise FloatingPointError(
            f"step {step}: the loss is not finite. {told}. No optimizer stepped; the last "
            "checkpoint is sound. Try a lower rate or look at these samples"
        )


def _faulty(scores: dict[str, Scored], keys: list[str]) -> str:
    """Each objective's loss, those that are not finite first, and the keys they are of."""
    losses = {name: scored.loss.item() for name, scored in scores.items()}
    faulty_first = sorted(losses, key=lambda name: isfinite(losses[name]))
    told = ", ".join(f"{name} {losses[name]:g}" for name in faulty_first)
    return f"{told}, on {', '.join(keys)}"


def _any_rank(flag: bool, device: torch.device) -> bool:
    flags = torch.tensor(float(flag), device=device)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return bool(flags.item())
