"""Floating-point operations of steps, and what devices can do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pretrain_fixtures import TINY, random_batch, tiny_student
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop

from stages.pretrain.config import PretrainConfig
from stages.pretrain.data.batch import Batch
from stages.pretrain.model import PretrainModel, make_objectives
from stages.student.activation_checkpointing import checkpoint_activations
from stages.training.config import TrainingConfig
from stages.training.monitoring.peak_flops import peak_of, peak_tflops
from stages.training.monitoring.step_flops import OperatorFlops, StepFlops

ATEN, CPU = torch.ops.aten, torch.device("cpu")
OF_ATTENTION = {
    ATEN._scaled_dot_product_flash_attention_for_cpu: sdpa_flop.__wrapped__,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop.__wrapped__,
}
STUDENT = replace(TINY, num_layers=2, hidden_size=64, ffn_size=256)


def _model() -> PretrainModel:
    return PretrainModel(tiny_student(STUDENT), make_objectives(PretrainConfig())).train()


def _batch(pictures: int, grid: tuple[int, int]) -> Batch:
    batch = random_batch(0, pictures=pictures, grid=grid, num_labels=3)
    return replace(batch, pixels=torch.randn(batch.pixels.shape))


def _pass(model: PretrainModel, batch: Batch) -> None:
    model.begin_step([batch], 1)
    torch.manual_seed(0)
    model(batch)[0].backward()


def test_operations_of_two_layers_by_hand() -> None:
    """Oracle: two operations a product. A convolution of 3 x 3 from 2 to 4 channels at 5 x 6
    places, and its gradient by weights (pixels need none); a map of 7 rows from 8 to 3, and its
    gradients by weights and rows."""
    pixels, rows = torch.randn(1, 2, 5, 6), torch.randn(7, 8, requires_grad=True)
    with OperatorFlops() as counted:
        nn.Conv2d(2, 4, 3, padding=1)(pixels).sum().backward()
        nn.Linear(8, 3)(rows).sum().backward()
    assert counted.convolutions == 2 * (2 * 9 * 2 * 4 * 30)
    assert counted.others == 3 * (2 * 7 * 8 * 3)


def test_a_step_has_what_pytorchs_counter_counts() -> None:
    """Oracle: FlopCounterMode over the same passes, with the formula of attention, which it does
    not have for processors."""
    model, batch = _model(), _batch(3, (2, 3))
    with FlopCounterMode(display=False, custom_mapping=OF_ATTENTION) as wanted:
        _pass(model, batch)
    with OperatorFlops() as counted:
        _pass(model, _batch(3, (2, 3)))
    assert counted.convolutions + counted.others == wanted.get_total_flops()
    of_convolutions = [ATEN.convolution, ATEN.convolution_backward]
    by_operator = wanted.get_flop_counts()["Global"]
    assert counted.convolutions == sum(by_operator[one] for one in of_convolutions) > 0


def test_what_is_computed_again_is_left_out() -> None:
    """Oracle: the same model without activation checkpointing."""
    counts = []
    for parts in ((), ("cnn", "transformer")):
        model = _model()
        checkpoint_activations(model.student, parts)
        with OperatorFlops() as counted:
            _pass(model, _batch(3, (2, 3)))
        counts.append((counted.convolutions, counted.others))
    assert counts[0] == counts[1]


@pytest.mark.parametrize(("pictures", "grid"), [(2, (2, 3)), (4, (4, 4))])
def test_other_micro_batches_follow_from_the_first(pictures: int, grid: tuple[int, int]) -> None:
    """Oracle: their own count, within 3 %, for fewer and more pictures, smaller and larger ones;
    a micro-batch that is padding counts nothing, and a report starts over."""
    model = _model()
    flops = StepFlops(TrainingConfig(), cell_px=16, device=CPU)
    for batch, is_valid in ((_batch(3, (3, 4)), True), (_batch(3, (3, 4)), False)):
        with flops.of_micro_batch(batch, is_valid=is_valid):
            _pass(model, batch)
    flops.take(1.0)
    batch = _batch(pictures, grid)
    with OperatorFlops() as wanted, flops.of_micro_batch(batch, is_valid=True):
        _pass(model, batch)
    per_second = flops.take(2.0)["model_tflops"]
    assert per_second * 2e12 == pytest.approx(wanted.convolutions + wanted.others, rel=0.03)
    assert flops.take(1.0) == {"model_tflops": 0.0}


def test_the_share_of_a_peak() -> None:
    """Oracle: the recipe's peak by hand; a processor has none of its own."""
    flops = StepFlops(TrainingConfig(peak_tflops=0.5), cell_px=16, device=CPU)
    batch = _batch(2, (2, 2))
    with flops.of_micro_batch(batch, is_valid=True):
        _pass(_model(), batch)
    figures = flops.take(1.0)
    assert figures["mfu"] == pytest.approx(figures["model_tflops"] / 0.5)
    assert peak_tflops(CPU, "fp32") is None
    with pytest.raises(ValueError, match="peak_tflops: got 0"):
        TrainingConfig(peak_tflops=0.0)


@pytest.mark.parametrize(
    ("name", "precision", "wanted"),
    [
        ("NVIDIA H100 80GB HBM3", "autocast-bf16", 989.4),
        ("NVIDIA H100 PCIe", "fp16", 756.0),
        ("NVIDIA H200", "fp32", 66.9),
        ("NVIDIA A100-SXM4-80GB", "tf32", 156.0),
        ("NVIDIA A100-PCIE-40GB", "bf16", 312.0),
        ("NVIDIA A10", "bf16", 125.0),
        ("NVIDIA A10G", "bf16", None),
        ("NVIDIA L40S", "bf16", 362.0),
        ("NVIDIA L4", "bf16", 121.0),
        ("Tesla V100-SXM2-16GB", "autocast-fp16", 125.0),
        ("Tesla V100-PCIE-16GB", "tf32", None),
        ("Tesla T4", "fp32", 8.1),
        ("NVIDIA GeForce GTX 1080", "fp32", None),
    ],
)
def test_peaks_by_the_names_that_cuda_gives(
    name: str, precision: str, wanted: float | None
) -> None:
    """Oracle: the makers' data sheets, dense."""
    assert peak_of(name, precision) == wanted
