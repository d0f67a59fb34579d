"""Decides when training must stop: a signal on any rank, or values that are not finite.

All ranks agree before they act, or the others would wait for ever in the next collective. Only a
rank that was signalled and gets no data stops alone, after `DATA_PATIENCE_SECONDS`.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from types import FrameType, TracebackType
from typing import Any

import torch

from boxless.errors import BoxlessError
from stages.training.monitoring.metrics import ObjectiveOutput

DATA_PATIENCE_SECONDS = 15.0
"""How long a rank that got a signal waits for its next batch."""


class DivergenceError(BoxlessError):
    """Losses, gradients or weights are not finite; the last checkpoint is intact."""


class Stopped(Exception):
    """The run was asked to stop; the same command continues it from its last checkpoint."""


@dataclass(frozen=True, kw_only=True)
class StepLosses:
    """The loss of a micro-batch, those of its objectives, and the samples they are of."""

    loss: torch.Tensor
    losses: dict[str, torch.Tensor]
    keys: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What all ranks know of a step before the optimizer's."""

    is_signalled: bool
    """Some rank got SIGTERM or SIGINT."""
    is_finite: bool
    """No rank has a gradient that is not finite."""


class Watch:
    """Notes SIGTERM and SIGINT inside its `with` block, and the losses of a step; asks all ranks
    whether to stop."""

    def __init__(self) -> None:
        self._signalled_at: float | None = None
        self._waiting_since: float | None = None
        self._noted: list[StepLosses] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Watch:
        if threading.current_thread() is threading.main_thread():
            for number, handler in (
                (signal.SIGTERM, self._signal),
                (signal.SIGINT, self._signal),
                (signal.SIGALRM, self._alarm),
            ):
                self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _signal(self, number: int, frame: FrameType | None) -> None:
        if self._signalled_at is None:
            self._signalled_at = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)

    def _alarm(self, number: int, frame: FrameType | None) -> None:
        if self._waiting_since is None or self._signalled_at is None:
            return
        if time.monotonic() - max(self._waiting_since, self._signalled_at) > DATA_PATIENCE_SECONDS:
            raise Stopped(
                f"stopped by a signal, and no data came for {DATA_PATIENCE_SECONDS:.0f} s; the last "
                "checkpoint is intact"
            )

    @property
    def is_signalled(self) -> bool:
        """Whether this rank was asked to stop."""
        return self._signalled_at is not None

    def stop_before_training(self, stage: str, device: torch.device) -> None:
        """Raises Stopped on every rank where any was asked to stop. A collective."""
        if any_rank(self.is_signalled, device):
            raise Stopped(f"stopped at {stage}, before the first step; nothing was to be saved")

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Inside, a stop does not wait for what may never come."""
        self._waiting_since = time.monotonic()
        try:
            yield
        finally:
            self._waiting_since = None

    def note(
        self, loss: torch.Tensor, outputs: Mapping[str, ObjectiveOutput], keys: Sequence[str]
    ) -> None:
        """Keep a micro-batch's losses for `agree`; on a GPU nothing is waited for."""
        losses = {name: output.loss.detach() for name, output in outputs.items()}
        self._noted.append(StepLosses(loss=loss.detach(), losses=losses, keys=keys))

    def agree(self, step: int, squared_norm: torch.Tensor | None) -> tuple[Agreement, list[str]]:
        """What all ranks say of the step, and the keys of this rank's samples in it. Called once a
        step, before the optimizer's: one all-reduce and one read of the device.

        squared_norm: of this rank's gradients; None where they cannot be read. Raises
        DivergenceError on every rank, with the same words, if a loss noted since the last call
        is not finite on any: which objectives, on which keys, of which rank.
        """
        noted, self._noted = self._noted, []
        are_finite = torch.stack([one.loss for one in noted]).isfinite()
        device = are_finite.device
        flags = torch.stack(
            [
                (~are_finite.all()).float(),
                torch.zeros((), device=device)
                if squared_norm is None
                else (~squared_norm.isfinite()).float(),
                torch.full((), float(self.is_signalled), device=device),
            ]
        )
        torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        has_bad_loss, has_bad_gradient, is_signalled = (flag > 0 for flag in flags.tolist())
        if has_bad_loss:
            _raise_for_losses(step, noted, are_finite)
        keys = [key for one in noted for key in one.keys]
        return Agreement(is_signalled=is_signalled, is_finite=not has_bad_gradient), keys


def _raise_for_losses(step: int, noted: Sequence[StepLosses], are_finite: torch.Tensor) -> None:
    bad = [one for one, is_finite in zip(noted, are_finite.tolist()) if not is_finite]
    raise DivergenceError(
        f"step {step}: the loss is not finite. {of_all_ranks('; '.join(map(_message, bad)))}. No "
        "optimizer stepped; the last checkpoint is intact. Try a lower rate or look at these samples"
    )


def of_all_ranks(words: str) -> str:
    """Each rank's words with its number, ranks without any left out. A collective."""
    found: list[str] = [""] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, words)
    return "; ".join(f"rank {rank}: {own}" for rank, own in enumerate(found) if own)


def any_rank(flag: bool | torch.Tensor, device: torch.device) -> bool:
    """Whether the flag is set on any rank. A collective."""
    flags = torch.as_tensor(flag, dtype=torch.float32, device=device)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return bool(flags.item())


def _message(one: StepLosses) -> str:
    """Each objective's loss, those that are not finite first, and the keys they are of."""
    losses = {name: loss.item() for name, loss in one.losses.items()}
    faulty_first = sorted(losses, key=lambda name: isfinite(losses[name]))
    listed = ", ".join(f"{name} {losses[name]:g}" for name in faulty_first)
    return f"{listed}, on {', '.join(one.keys)}"
