"""TF32 where a recipe asks for it, and nowhere else."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

from boxless.errors import BoxlessError
from stages.detector.predictor import in_precision
from stages.tf32 import allow_tf32, check_tf32
from stages.training.config import TrainingConfig
from stages.training.loop import Loop
from stages.training.training_state import TrainingState


def _state() -> tuple[Any, ...]:
    """What PyTorch would do, by its older and its newer functions."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return (
        matmul.allow_tf32,
        cudnn.allow_tf32,
        matmul.fp32_precision == "tf32",
        cudnn.conv.fp32_precision == "tf32",
    )


@pytest.mark.parametrize("tf32", [True, False])
def test_products_are_what_is_asked_for_inside(tf32: bool) -> None:
    """Oracle: PyTorch's four answers agree inside; outside they are those of before, after an error
    too."""
    before = _state()
    with pytest.raises(KeyError), allow_tf32(tf32):
        assert _state() == (tf32,) * 4
        with allow_tf32(not tf32):
            assert _state() == (not tf32,) * 4
        assert _state() == (tf32,) * 4
        raise KeyError
    assert _state() == before


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_a_teacher_has_the_products_of_its_precision(precision: str, tf32: bool) -> None:
    """Oracle: as above; kernels that give the same each time, in bf16, the only autocast here, just
    where they did before."""
    before = _state(), torch.backends.cudnn.deterministic
    with in_precision(precision, torch.device("cpu")):
        assert _state() == (tf32,) * 4
        assert torch.backends.cudnn.deterministic == (precision != "bf16" or before[1])
        assert torch.is_autocast_enabled("cpu") == (precision == "bf16")
    assert (_state(), torch.backends.cudnn.deterministic) == before


def test_a_device_without_tf32_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the field, the device and what to take; other precisions pass, and so do devices that
    have it."""
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: False)
    with pytest.raises(BoxlessError, match="teach.precision: got tf32 on a cpu .* expected fp32"):
        check_tf32("teach.precision", "tf32")
    check_tf32("teach.precision", "bf16")
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: True)
    check_tf32("teach.precision", "tf32")


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("tf32", True)])
def test_steps_of_training_have_the_products_of_its_precision(
    precision: str, tf32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop whose step only looks. Oracle: as above; and cuDNN's choice of algorithms is the
    recipe's inside, and that of before outside."""
    seen = []

    def step(self: Loop) -> None:
        seen.append((_state(), torch.backends.cudnn.benchmark))
        self.state.step += 1

    monkeypatch.setattr(Loop, "step", step)
    monkeypatch.setattr(Loop, "finish_step", lambda self, progress: None)
    loop = Loop.__new__(Loop)
    loop.config = TrainingConfig(num_steps=1, precision=precision, cudnn_benchmark=tf32)
    loop.title, loop.rank, loop.state = "training", 1, TrainingState()
    loop.engine, loop.stalls, loop.loader = mock.MagicMock(), mock.MagicMock(), mock.MagicMock()
    loop.profile, loop.on_step, loop.log = mock.MagicMock(), None, None
    before = _state(), torch.backends.cudnn.benchmark
    loop.run()
    assert seen == [((tf32,) * 4, tf32)]
    assert (_state(), torch.backends.cudnn.benchmark) == before
