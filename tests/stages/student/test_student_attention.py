"""The fusion, watched: attention and hidden states are those of the pass that they come from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pretrain_fixtures import TINY, tiny_student
from transformers.models.bert.modeling_bert import eager_attention_forward

from stages.student.attention_trace import AttentionTrace, rollout, trace_attention
from stages.student.network import Student
from stages.student.vision.neck_config import SohoNeckConfig

PIXELS = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
SIZES = torch.tensor([[32, 48], [16, 20]])
TOKENS = torch.tensor([[2, 7, 8, 9, 3, 0], [2, 9, 9, 3, 0, 0], [2, 5, 6, 7, 8, 3]])
PICTURE = torch.tensor([0, 0, 1])
DEEP = replace(TINY, num_layers=3)
NUM_TEXT = 6


def _watched(student: Student) -> AttentionTrace:
    cells = student.encode_image(PIXELS, SIZES)
    return trace_attention(student, cells, picture=PICTURE, tokens=TOKENS)


@pytest.mark.parametrize("config", [DEEP, replace(DEEP, neck=SohoNeckConfig())])
@torch.no_grad()
def test_weights_are_those_of_eager_attention(config: object) -> None:
    """Oracle: the layers run one after the other by transformers' eager attention, with padding as
    a number added; it returns its weights. Outputs are those of the student unwatched."""
    student = tiny_student(config)  # type: ignore[arg-type]
    watched = _watched(student)
    cells = student.encode_image(PIXELS, SIZES)
    plain = student.fuse(cells, picture=PICTURE, input_ids=TOKENS)
    assert torch.equal(watched.hidden.text, plain.text)
    assert torch.equal(watched.hidden.cells, plain.cells)
    hidden = watched.states[:, 0]
    seen = torch.cat([TOKENS != 0, cells.inside[PICTURE]], dim=1)
    added = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[:, None, None, :]
    for number, layer in enumerate(student.fusion.layer):
        module = layer.attention.self
        query, key, value = (
            part(hidden).view(3, 12, 2, 16).transpose(1, 2)
            for part in (module.query, module.key, module.value)
        )
        _, weights = eager_attention_forward(module, query, key, value, added, module.scaling)
        torch.testing.assert_close(watched.attention[:, number], weights, rtol=1e-4, atol=1e-6)
        hidden = layer(hidden, added)
        torch.testing.assert_close(watched.states[:, number + 1], hidden, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hidden[:, :NUM_TEXT], plain.text, rtol=1e-4, atol=1e-5)


def test_rows_sum_to_one_and_nothing_looks_at_padding() -> None:
    """Oracle: arithmetic; the second picture has cells of padding, two texts word pieces."""
    student = tiny_student(DEEP)
    watched = _watched(student)
    assert watched.attention.shape == (3, 3, 2, 12, 12)
    assert watched.states.shape == (3, 4, 12, 32)
    torch.testing.assert_close(watched.attention.sum(dim=-1), torch.ones(3, 3, 2, 12))
    inside = student.encode_image(PIXELS, SIZES).inside[PICTURE]
    assert not inside[2].all()
    padding = torch.cat([TOKENS == 0, ~inside], dim=1)
    looked = watched.attention.amax(dim=(1, 2, 3))
    assert (looked[padding] == 0).all() and (looked[~padding] > 0).all()


def test_no_hook_stays_behind() -> None:
    """Oracle: the modules' own lists, also after a pass that fails."""
    student = tiny_student(DEEP)
    _watched(student)
    with pytest.raises(IndexError):
        trace_attention(
            student,
            student.encode_image(PIXELS, SIZES),
            picture=torch.tensor([9]),
            tokens=TOKENS[:1],
        )
    for module in student.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_rollout_by_hand() -> None:
    """Oracle: two tokens, two layers, on paper. Layer 1 (heads [1 0; 0 1] and [0 1; 0 1], mean
    [.5 .5; 0 1]), with the residual [.75 .25; 0 1]; layer 2 (both heads [0 1; 1 0]), with the
    residual [.5 .5; .5 .5]: their product [.375 .625; .375 .625]."""
    first = torch.tensor([[[1.0, 0], [0, 1]], [[0, 1], [0, 1]]])
    second = torch.tensor([[[0.0, 1], [1, 0]], [[0, 1], [1, 0]]])
    found = rollout(torch.stack([first, second]))
    torch.testing.assert_close(found, torch.tensor([[0.375, 0.625], [0.375, 0.625]]))


def test_rollout_of_a_student_sums_to_one() -> None:
    """Oracle: rows of a product of matrices whose rows sum to 1 do so too."""
    for attention in _watched(tiny_student(DEEP)).attention:
        torch.testing.assert_close(rollout(attention).sum(dim=-1), torch.ones(12))
