"""Logs metrics: `metrics.jsonl`, TensorBoard, Weights & Biases, and sums over ranks.

A run that continues from a checkpoint first drops the lines that
were written after it, so that no step is there twice.
"""

from __future__ import annotations

import importlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from boxless.errors import BoxlessError
from sharding.writing.atomic import write_text

METRICS = "metrics.jsonl"
WANDB_ID = "wandb-id"
"""File of a folder's id in Weights & Biases."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveOutput:
    """An objective's loss (scalar, with a gradient even when nothing was labelled) and its
    metrics: name -> (sum, count), which ranks add up before dividing."""

    loss: torch.Tensor
    metrics: dict[str, tuple[torch.Tensor, torch.Tensor]]


class MetricAccumulator:
    """Sums of losses and metrics of this rank since the last report."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    def add(
        self, loss: torch.Tensor, outputs: Mapping[str, ObjectiveOutput], *, is_valid: bool
    ) -> None:
        """Count one micro-batch. One that is padding adds zeros, for `take` needs the same names on
        every rank."""
        one = torch.full((), float(is_valid), device=loss.device)
        self._add("loss", loss * one, one)
        for name, output in outputs.items():
            self._add(f"{name}/loss", output.loss * one, one)
            for metric, (total, count) in output.metrics.items():
                self._add(f"{name}/{metric}", total * one, count * one)

    def _add(self, name: str, total: torch.Tensor, count: torch.Tensor) -> None:
        entry = torch.stack([total.detach().float(), count.float()])
        self._sums[name] = self._sums[name] + entry if name in self._sums else entry

    def take(self) -> dict[str, float]:
        """Means over all ranks (a collective: every rank calls it), then start over."""
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name] for name in names])
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        self._sums = {}
        totals, counts = sums.double().cpu().unbind(dim=1)
        return {
            name: float(total / count)
            for name, total, count in zip(names, totals, counts)
            if count > 0
        }


class MetricsLog:
    """Appends a line a report to `metrics.jsonl` and the same to TensorBoard, and to a project of
    Weights & Biases where one is named. Rank 0 only.

    title: of the run there. Raises ValueError where a project is named and wandb is not installed.
    """

    def __init__(
        self, folder: Path, *, step: int, title: str = "training", wandb_project: str | None = None
    ) -> None:
        self._path = folder / METRICS
        folder.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(self._path) if line["step"] <= step]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._wandb = _wandb_run(folder, title, wandb_project) if wandb_project else None

    def write(self, line: dict[str, float]) -> None:
        """One report; `line` has its `step`."""
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in line.items():
            self._board.add_scalar(name, value, int(line["step"]))
        if self._wandb is not None:
            self._wandb.log(line, step=int(line["step"]))

    def close(self) -> None:
        """Flush TensorBoard and Weights & Biases."""
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _wandb_run(folder: Path, title: str, project: str) -> Any:
    """The folder's run in a project of Weights & Biases: a new one, or the one that it began
    earlier, whose id is in the folder."""
    try:
        wandb = importlib.import_module("wandb")
    except ImportError:
        raise BoxlessError(
            f"wandb_project: got {project!r}, but the package wandb is not installed; expected it "
            "(pip install wandb), or null"
        ) from None
    path = folder / WANDB_ID
    if not path.exists():
        write_text(path, uuid.uuid4().hex[:12])
    return wandb.init(
        project=project,
        id=path.read_text().strip(),
        name=f"{folder.absolute().parent.name} {title}",
        dir=str(folder),
        resume="allow",
    )


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics file, without a last one that a kill cut; [] where there is none."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
