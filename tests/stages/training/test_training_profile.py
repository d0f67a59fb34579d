"""Profiles of training steps."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from stages.training.config import TrainingConfig
from stages.training.monitoring.profile import StepProfile


def test_the_steps_asked_for_are_recorded(tmp_path: Path) -> None:
    """Oracle: each step multiplies matrices once; steps 2 and 3 of five give two products."""
    recorded = StepProfile(tmp_path, (2, 3), rank=1)
    for step in range(1, 6):
        with recorded.of_step(step):
            torch.ones(3, 3) @ torch.ones(3, 3)
    (path,) = tmp_path.rglob("*.json.gz")
    assert path == tmp_path / "profile" / "rank-1.json.gz"
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert [event.get("name") for event in events].count("aten::matmul") == 2


def test_no_steps_no_file(tmp_path: Path) -> None:
    """Oracle: an empty folder."""
    with StepProfile(tmp_path, (), rank=0).of_step(1):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("steps", [(1,), (0, 2), (3, 2), (1, 2, 3)])
def test_steps_that_are_no_window_are_refused(steps: tuple[int, ...]) -> None:
    """Oracle: the field's name."""
    with pytest.raises(ValueError, match="profile_steps: got"):
        TrainingConfig(profile_steps=steps)
