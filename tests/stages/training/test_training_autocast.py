"""Precisions autocast-bf16 and autocast-fp16: products in 16 bits, all that is summed or compared
in float32."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pretrain_fixtures import TINY, random_batch, tiny_student, toy_tokenizer
from torch.nn import functional as F

from stages.pretrain.config import PretrainConfig
from stages.pretrain.model import PretrainModel, make_objectives
from stages.pretrain.objectives.config import ItcConfig, OmvmConfig, PraConfig
from stages.pretrain.objectives.mvm import code_logits
from stages.student.heads import AlignHead
from stages.student.vision.neck_config import SohoNeckConfig
from stages.training.ds_config import engine_settings


@pytest.mark.parametrize(
    ("dtype", "tolerance", "least_cosine"),
    [(torch.bfloat16, 0.02, 0.98), (torch.float16, 0.005, 0.999)],
)
def test_losses_and_gradients_are_close_to_those_in_float32(
    dtype: torch.dtype, tolerance: float, least_cosine: float
) -> None:
    """Every objective of KD-VLP and ITC. Oracle: float32's losses within 2 % in bf16 (7 bits of
    mantissa) and 0.5 % in fp16 (10 bits, losses scaled by 1024), the gradient's direction within a
    cosine of 0.98 and 0.999; losses and gradients are float32."""
    scale = 1024.0 if dtype == torch.float16 else 1.0
    config = PretrainConfig(
        itc=ItcConfig(weight=1.0), omvm=OmvmConfig(soft_label=True), pra=PraConfig(region="cell")
    )
    losses, gradients = [], []
    for enabled in (False, True):
        model = PretrainModel(tiny_student(replace(TINY, itc_size=16)), make_objectives(config))
        batch = random_batch(0, grid=(2, 2), num_labels=3)
        batch.pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        random = np.random.default_rng(0)
        for _, objective in model.objectives.values():
            objective.mask(batch, toy_tokenizer(), random)
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype, enabled=enabled):
            loss, scores = model(batch)
        assert {score.loss.dtype for score in scores.values()} == {torch.float32}
        (loss * scale).backward()
        losses.append({name: score.loss.item() for name, score in scores.items()})
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert {grad.dtype for grad in grads} == {torch.float32}
        gradients.append(torch.cat([grad.to_dense().flatten() for grad in grads]))
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)
    assert F.cosine_similarity(*gradients, dim=0) > least_cosine


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_compared_stays_float32(dtype: torch.dtype) -> None:
    """Oracle: the same call outside of autocast, to the bit."""
    random = torch.Generator().manual_seed(0)
    phrases, regions = (
        torch.randn(2, 3, 8, generator=random),
        torch.randn(2, 4, 8, generator=random),
    )
    student = tiny_student(replace(TINY, itc_size=16, neck=SohoNeckConfig()))
    assert student.dictionary is not None
    hidden = torch.randn(5, TINY.hidden_size, generator=random)

    def compared() -> list[torch.Tensor]:
        assert student.dictionary is not None
        return [
            AlignHead(0.1)(phrases, regions),
            student.compare(hidden, hidden),
            code_logits(hidden, student.dictionary),
            student.dictionary(hidden)[1],
        ]

    outside = compared()
    with torch.autocast("cpu", dtype):
        inside = compared()
    assert all(torch.equal(a, b) for a, b in zip(inside, outside))


@pytest.mark.parametrize(
    ("precision", "dtype"), [("autocast-bf16", "bfloat16"), ("autocast-fp16", "float16")]
)
def test_deepspeed_keeps_sums_of_gradients_in_float32(precision: str, dtype: str) -> None:
    """Oracle: its settings: autocast for all modules, and no module whose gradients are reduced in
    16 bits; neither of its 16-bit modes."""
    settings = engine_settings(PretrainConfig(precision=precision), 1)
    assert settings["torch_autocast"] == {
        "enabled": True,
        "dtype": dtype,
        "lower_precision_safe_modules": [],
    }
    assert not settings["bf16"]["enabled"] and not settings["fp16"]["enabled"]
    assert "torch_autocast" not in engine_settings(PretrainConfig(), 1)
