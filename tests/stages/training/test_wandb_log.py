"""Metrics that go to Weights & Biases as well."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from stages.training.monitoring.metrics import MetricsLog


class StandIn(types.ModuleType):
    """What wandb was asked for: `init`'s arguments, and the lines of its runs."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.inits: list[dict[str, Any]] = []
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.num_finished = 0

    def init(self, **arguments: Any) -> StandIn:
        self.inits.append(arguments)
        return self

    def log(self, line: dict[str, float], *, step: int) -> None:
        self.lines.append((step, line))

    def finish(self) -> None:
        self.num_finished += 1


def test_lines_go_to_one_run_also_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the lines that were written; a folder keeps its run's id and asks to continue."""
    wandb = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for step in (0, 1):
        log = MetricsLog(tmp_path / "p", step=step, title="pretrain", wandb_project="mine")
        log.write({"step": step + 1, "loss": 0.5})
        log.close()
    assert wandb.lines == [(1, {"step": 1, "loss": 0.5}), (2, {"step": 2, "loss": 0.5})]
    assert wandb.num_finished == 2 and wandb.inits[0] == wandb.inits[1]
    assert wandb.inits[0]["project"] == "mine" and wandb.inits[0]["resume"] == "allow"
    assert wandb.inits[0]["id"] == (tmp_path / "p" / "wandb-id").read_text()


def test_without_the_package_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the words; without a project nothing is imported."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        MetricsLog(tmp_path, step=0, wandb_project="mine")
    MetricsLog(tmp_path, step=0).close()
