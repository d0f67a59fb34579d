"""Activation checkpointing against none: the same to the bit, in less memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from pretrain_fixtures import TINY, tiny_student

from stages.student.activation_checkpointing import checkpoint_activations
from stages.student.config import StudentConfig
from stages.student.vision.neck_config import DictionaryConfig, SohoNeckConfig

PLAIN = replace(TINY, dropout=0.2, depths=(2, 2), num_layers=2)
SOHO = replace(
    PLAIN,
    frozen_stages=1,
    neck=SohoNeckConfig(dictionary=DictionaryConfig(num_codes=6, start="random")),
)


def _pass(
    config: StudentConfig, parts: Sequence[str], *, training: bool
) -> tuple[dict[str, torch.Tensor], int]:
    """Two forward and backward passes with dropout: outputs, gradients and the state after them;
    and how many bytes of the last pass waited for its backward pass."""
    student = tiny_student(config).train(training)
    checkpoint_activations(student, parts)
    random = torch.Generator().manual_seed(1)
    found: dict[str, torch.Tensor] = {}
    for step in range(2):
        pixels = torch.randn(2, 3, 32, 48, generator=random)
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.data_ptr()] = tensor.nbytes
            return tensor

        torch.manual_seed(7 + step)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            cells = student.encode_image(pixels, torch.tensor([[32, 48], [32, 32]]))
            hidden = student.fuse(
                cells, picture=torch.tensor([0, 1]), input_ids=torch.tensor([[2, 9, 3], [2, 7, 0]])
            )
        found |= {f"text {step}": hidden.text, f"cells {step}": hidden.cells}
        (hidden.text.square().sum() + hidden.cells.sin().sum()).backward()
    for name, parameter in student.named_parameters():
        if parameter.grad is not None:
            found[f"gradient of {name}"] = parameter.grad
    return found | student.state_dict(), sum(kept.values())


@pytest.mark.parametrize("config", [PLAIN, SOHO], ids=["plain", "soho"])
@pytest.mark.parametrize("parts", [("cnn",), ("transformer",), ("cnn", "transformer")])
def test_nothing_changes_but_memory(config: StudentConfig, parts: tuple[str, ...]) -> None:
    """Oracle: the same two passes without checkpointing, bit for bit, dropout's draws and
    BatchNorm's statistics too, which count each pass once; fewer bytes wait for the backward
    pass."""
    expected, many = _pass(config, (), training=True)
    found, few = _pass(config, parts, training=True)
    assert found.keys() == expected.keys()
    assert not [name for name in found if not torch.equal(found[name], expected[name])]
    counted = [v for name, v in found.items() if name.endswith("num_batches_tracked") and v]
    assert counted and all(value == 2 for value in counted)
    assert few < many


def test_in_evaluation_nothing_is_forgotten() -> None:
    """Oracle: outputs and kept bytes of a student without checkpointing."""
    expected, many = _pass(PLAIN, (), training=False)
    found, as_many = _pass(PLAIN, ("cnn", "transformer"), training=False)
    assert not [name for name in found if not torch.equal(found[name], expected[name])]
    assert many == as_many
