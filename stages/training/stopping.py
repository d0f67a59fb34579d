"""When training must stop: a signal, or a loss that is not finite, on any rank.

Reached from `stages.pretrain.run`. All ranks must agree before they act, or the others would wait
for ever in the next collective.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from math import isfinite
from types import FrameType

import torch

from stages.pretrain.objectives.objective import ObjectiveOutput


class Stopped(Exception):
    """The run was asked to stop and has saved a checkpoint; the same command continues it."""


@dataclass(frozen=True, kw_only=True)
class Noted:
    """The loss of a micro-batch, those of its objectives, and the samples they are of."""

    loss: torch.Tensor
    losses: dict[str, torch.Tensor]
    keys: list[str]


class Watch:
    """Notes SIGTERM and SIGINT from its making on, and the losses of a step; asks all ranks whether
    to stop."""

    def __init__(self) -> None:
        self._signalled = False
        self._noted: list[Noted] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signal)

    def _signal(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    def everywhere(self, device: torch.device) -> bool:
        """Whether any rank was signalled. A collective: every rank calls it."""
        return _any_rank(self._signalled, device)

    def note(self, loss: torch.Tensor, scores: dict[str, ObjectiveOutput], keys: list[str]) -> None:
        """Keep a micro-batch's losses for `finite`; on a GPU nothing is waited for."""
        losses = {name: scored.loss.detach() for name, scored in scores.items()}
        self._noted.append(Noted(loss=loss.detach(), losses=losses, keys=keys))

    def finite(self, step: int) -> None:
        """Raise FloatingPointError on every rank if a loss noted since the last call is not finite
        on any, with the same words: which objectives, on which keys, of which rank.

        Called once a step, before the optimizer's. A collective.
        """
        noted, self._noted = self._noted, []
        are_finite = torch.stack([one.loss for one in noted]).isfinite()
        if not _any_rank(~are_finite.all(), are_finite.device):
            return
        bad = [one for one, is_finite in zip(noted, are_finite.tolist()) if not is_finite]
        found: list[str] = [""] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(found, "; ".join(map(_told, bad)))
        told = "; ".join(f"rank {rank}: {words}" for rank, words in enumerate(found) if words)
        raise FloatingPointError(
            f"step {step}: the loss is not finite. {told}. No optimizer stepped; the last "
            "checkpoint is sound. Try a lower rate or look at these samples"
        )


def _told(one: Noted) -> str:
    """Each objective's loss, those that are not finite first, and the keys they are of."""
    losses = {name: loss.item() for name, loss in one.losses.items()}
    faulty_first = sorted(losses, key=lambda name: isfinite(losses[name]))
    told = ", ".join(f"{name} {losses[name]:g}" for name in faulty_first)
    return f"{told}, on {', '.join(one.keys)}"


def _any_rank(flag: bool | torch.Tensor, device: torch.device) -> bool:
    flags = torch.as_tensor(flag, dtype=torch.float32, device=device)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return bool(flags.item())
