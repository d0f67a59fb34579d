"""The CNN's BatchNorm: PyTorch's in fp32, float32 statistics in 16 bits, frozen, local, synced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretrain_fixtures import TINY, tiny_student
from torch import nn

from stages.student.network import Student
from stages.student.vision.batch_norm import (
    BatchNorm,
    SyncedBatchNorm,
    replace_batch_norms,
    statistics_untouched,
)


def _pictures(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _uneven(norm: nn.Module) -> nn.Module:
    """Weights and statistics that do something."""
    random = torch.Generator().manual_seed(5)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.data.copy_(torch.rand(tensor.shape, generator=random) + 0.5)
    return norm


@pytest.mark.parametrize("make", [BatchNorm, SyncedBatchNorm])
@pytest.mark.parametrize("training", [True, False])
def test_in_fp32_it_is_pytorchs(make: Callable[[int], nn.Module], training: bool) -> None:
    """Oracle: nn.BatchNorm2d, bit for bit: three outputs, gradients, the state after them. Without
    other ranks the synced one is the same, on a CPU too."""
    mine, theirs = (_uneven(kind(4)).train(training) for kind in (make, nn.BatchNorm2d))
    for seed in range(3):
        x, y = (_pictures(seed).requires_grad_() for _ in range(2))
        out, expected = mine(x), theirs(y)
        assert torch.equal(out, expected)
        for z in (out, expected):
            z.square().sum().backward()
        assert torch.equal(x.grad, y.grad) and torch.equal(mine.weight.grad, theirs.weight.grad)
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    for name, value in mine.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_stay_whole_in_16_bits(dtype: torch.dtype) -> None:
    """Oracle: the same pictures in float32. The layer's own cast leaves its statistics alone; 40
    steps move them as float32 does, which in bfloat16 would stand still on the way."""
    mine, whole = BatchNorm(4).to(dtype), BatchNorm(4)
    assert mine.weight.dtype == dtype
    for seed in range(40):
        x = _pictures(seed, dtype) + 3.0
        out, expected = mine(x), whole(x.float())
        assert out.dtype == dtype
        torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=2e-2)
    for name in ("running_mean", "running_var"):
        value = getattr(mine, name)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, getattr(whole, name), rtol=1e-5, atol=1e-5)


def test_a_saved_student_keeps_its_statistics(tmp_path: Path) -> None:
    """Oracle: bits. A student of bfloat16 weights comes back with the float32 statistics it had,
    values that bfloat16 has not."""
    student = tiny_student().bfloat16()
    student.save_pretrained(tmp_path)
    loaded = Student.from_pretrained(tmp_path).state_dict()
    assert loaded["grid.project.weight"].dtype == torch.bfloat16
    for name, value in student.state_dict().items():
        assert torch.equal(value, loaded[name]) and value.dtype == loaded[name].dtype, name
        if name.endswith("running_var"):
            assert not torch.equal(value, value.bfloat16().float())


def test_a_pass_that_is_run_again_moves_nothing() -> None:
    """Oracle: the outputs of training mode, and a state that is bit-equal to the one before; after
    the context the statistics move again."""
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    replace_batch_norms(net, "local")
    expected = net(_pictures(0))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with statistics_untouched(net):
        assert torch.equal(net(_pictures(0)), expected)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    net(_pictures(0))
    assert net[1].num_batches_tracked == 2


def test_the_policy_of_the_cnn() -> None:
    """Oracle: names and bits. Frozen: no BatchNorm of the CNN learns or moves, its convolutions do;
    local: statistics move; synced: PyTorch's layer; all have the names of the released weights."""
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    names = tiny_student().state_dict().keys()
    for policy in ("local", "sync", "frozen"):
        student = tiny_student(replace(TINY, batch_norm=policy)).train()
        assert student.state_dict().keys() == names and student.config.batch_norm == policy
        before = {name: value.clone() for name, value in student.grid.state_dict().items()}
        student.grid(pixels).sum().backward()
        for name, value in student.grid.state_dict().items():
            if name.endswith("running_mean"):
                assert torch.equal(value, before[name]) == (policy == "frozen"), name
        for name, parameter in student.grid.resnet.named_parameters():
            is_frozen = policy == "frozen" and "normalization" in name
            assert (parameter.grad is None) == is_frozen, name
        norms = [m for m in student.grid.modules() if isinstance(m, nn.SyncBatchNorm)]
        assert bool(norms) == (policy == "sync")
