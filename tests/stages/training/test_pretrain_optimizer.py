"""The two optimizers in one, their groups, and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from pretrain_fixtures import TINY, tiny_student

from stages.pretrain.config import PretrainConfig
from stages.pretrain.model import make_objectives
from stages.pretrain.objectives.config import ItmConfig, MlmConfig, OmvmConfig, PraConfig
from stages.pretrain.optimizer import freeze, make_optimizer
from stages.training import optimizer as optimizer_file
from stages.training.optimizer import AdamwSgd
from stages.training.schedule import rate_factor

RUN = PretrainConfig(num_steps=100, warmup=0.1)


def _parameters() -> list[torch.nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(*s, generator=random)) for s in ((4, 3), (5,), (2, 2))]


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_steps_are_those_of_pytorchs_optimizers(
    fused: bool, nesterov: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: torch.optim.AdamW and torch.optim.SGD on copies of the same parameters, 20 steps of
    the same gradients under changing rates; one parameter has no gradient in the first steps. The
    fused kernels of GPUs are tried on the CPU, for which PyTorch has them too."""
    monkeypatch.setattr(optimizer_file, "is_fused", lambda _: fused)
    mine, theirs = (_parameters() + _parameters() for _ in range(2))
    both = AdamwSgd(
        [
            {"params": mine[:3], "rule": "adamw", "betas": (0.8, 0.95), "weight_decay": 0.1},
            {
                "params": mine[3:],
                "rule": "sgd",
                "momentum": 0.9,
                "nesterov": nesterov,
                "weight_decay": 0.05,
            },
        ]
    )
    adamw = torch.optim.AdamW(theirs[:3], lr=1.0, betas=(0.8, 0.95), weight_decay=0.1, eps=1e-6)
    sgd = torch.optim.SGD(theirs[3:], lr=1.0, momentum=0.9, nesterov=nesterov, weight_decay=0.05)
    random = torch.Generator().manual_seed(1)
    for step in range(20):
        for optimizer in (both, adamw, sgd):
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * (step + 1)
        for i, (a, b) in enumerate(zip(mine, theirs)):
            gradient = torch.randn(a.shape, generator=random)
            if i % 3 != 1 or step >= 3:
                a.grad, b.grad = gradient, gradient.clone()
        for optimizer in (both, adamw, sgd):
            optimizer.step()
        for a, b in zip(mine, theirs):
            torch.testing.assert_close(a, b, rtol=5e-6, atol=1e-6)


def test_state_comes_back() -> None:
    """Oracle: five steps, against two, saved, loaded into a new one, and three more."""

    def run(steps: list[int], first: AdamwSgd | None, own: list[torch.nn.Parameter]) -> AdamwSgd:
        optimizer = AdamwSgd(
            [
                {"params": own[:2], "rule": "adamw", "betas": (0.9, 0.9), "lr": 0.1},
                {"params": own[2:], "rule": "sgd", "momentum": 0.9, "nesterov": True, "lr": 0.1},
            ]
        )
        if first:
            optimizer.load_state_dict(first.state_dict())
        for step in steps:
            for p in own:
                p.grad = torch.full_like(p, math.sin(step))
            optimizer.step()
        return optimizer

    whole, parted = _parameters(), _parameters()
    run([0, 1, 2, 3, 4], None, whole)
    run([2, 3, 4], run([0, 1], None, parted), parted)
    assert all(torch.equal(a, b) for a, b in zip(whole, parted))


def test_a_closure_is_refused() -> None:
    """Oracle: ValueError, not a silent wrong step."""
    with pytest.raises(ValueError, match="closure"):
        AdamwSgd([{"params": _parameters(), "rule": "sgd", "momentum": 0.9}]).step(lambda: 0)


@pytest.mark.parametrize("decay_norms", [False, True])
def test_groups_hold_every_parameter_once_and_spare_norms_and_biases(decay_norms: bool) -> None:
    """Oracle: names. The CNN goes to SGD, the rest to AdamW; weights of a BatchNorm or LayerNorm,
    biases and the mask vector have no decay unless the recipe says so, everything else has its
    part's."""
    student = tiny_student()
    config = PretrainConfig(
        weight_decay=0.3,
        weight_decay_cnn=0.2,
        lr_cnn=0.5,
        lr_transformer=0.1,
        momentum=0.7,
        decay_norms=decay_norms,
        nesterov=decay_norms,
    )
    got = {}
    for group in make_optimizer(student, config).param_groups:
        for p in group["params"]:
            assert id(p) not in got
            got[id(p)] = (group["rule"], group["weight_decay"], group["peak_lr"])
            assert group.get("momentum", 0.7) == 0.7
            assert group.get("nesterov", decay_norms) == decay_norms
    assert len(got) == len(list(student.parameters()))
    for name, p in student.named_parameters():
        is_cnn = name.startswith("grid.resnet.")
        spared = name.endswith(".bias") or "norm" in name.lower() or name == "visual_mask_embedding"
        decay = 0.0 if spared and not decay_norms else 0.2 if is_cnn else 0.3
        assert got[id(p)] == (("sgd", decay, 0.5) if is_cnn else ("adamw", decay, 0.1)), name


def test_each_part_has_its_rate_and_frozen_ones_are_left_out() -> None:
    """Oracle: names. Embeddings, layers, alignment and everything else have the rates of text,
    transformer, alignment and heads; a part that is frozen is in no group and takes no gradient."""
    student = tiny_student(replace(TINY, pra_size=8))
    config = PretrainConfig(
        lr_transformer=0.1, lr_text=0.2, lr_heads=0.3, lr_alignment=0.4, lr_cnn=0.5
    )
    wanted = {"embeddings": 0.2, "fusion": 0.1, "grid.resnet": 0.5, "align_head": 0.4}
    groups = make_optimizer(student, config).param_groups
    got = {id(p): group["peak_lr"] for group in groups for p in group["params"]}
    for name, p in student.named_parameters():
        rates = [rate for part, rate in wanted.items() if name.startswith(f"{part}.")]
        assert got[id(p)] == (rates or [0.3])[0], name
    freeze(student, replace(config, frozen=("text", "fusion")))
    for name, p in student.named_parameters():
        assert p.requires_grad != name.startswith(("embeddings.", "fusion.")), name
    groups = make_optimizer(student, config).param_groups
    assert {group["peak_lr"] for group in groups} == {0.3, 0.4, 0.5}
    unset = make_optimizer(student, replace(config, lr_alignment=None)).param_groups
    assert {group["peak_lr"] for group in unset} == {0.3, 0.5}
    freeze(student, replace(config, frozen=("heads",)))
    assert not any(p.requires_grad for p in student.align_head.parameters())
    with pytest.raises(ValueError, match="frozen: got 'neck'"):
        PretrainConfig(frozen=("neck",))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "step, factor",
    [(0, 1 / 11), (4, 5 / 11), (9, 10 / 11), (10, 1.0), (55, 0.51), (40, 0.755), (70, 0.265)],
)
def test_cosine_by_hand(step: int, factor: float) -> None:
    """Oracle: 10 of 100 steps rise by 1/11 each; then 0.02 + 0.98 x (1 + cos(pi x done)) / 2 with
    done (step - 10) / 90: one half at 55, a third at 40, two thirds at 70."""
    assert rate_factor(step, RUN) == pytest.approx(factor)


def test_cosine_falls_to_a_fiftieth() -> None:
    """Oracle: strictly falling after the rise, and near 0.02 at the last step."""
    factors = [rate_factor(step, RUN) for step in range(100)]
    assert all(a > b for a, b in zip(factors[10:], factors[11:]))
    assert 0.02 < factors[-1] < 0.021


@pytest.mark.parametrize(
    "step, factor",
    [(9, 10 / 11), (10, 1.0), (61, 1.0), (62, 1.0), (63, 0.1), (87, 0.1), (88, 0.01)],
)
def test_steps_by_hand(step: int, factor: float) -> None:
    """Oracle: SOHO's epochs 25 and 35 of 40 are 62.5 and 87.5 of 100 steps."""
    config = replace(RUN, schedule="steps")
    assert rate_factor(step, config) == pytest.approx(factor)


@pytest.mark.parametrize(
    "step, factor", [(0, 1 / 3), (1, 0.4), (5, 2 / 3), (9, 14 / 15), (10, 1.0), (62, 1.0)]
)
def test_soho_rises_from_a_third(step: int, factor: float) -> None:
    """Oracle: mmcv's linear warm-up by hand, 1 - (1 - step / 10) x (1 - 1/3) for 10 steps."""
    config = replace(RUN, schedule="steps", warmup_from=1 / 3)
    assert rate_factor(step, config) == pytest.approx(factor)


@pytest.mark.parametrize("schedule", ["cosine", "steps"])
def test_the_schedule_is_of_samples(schedule: str) -> None:
    """Oracle: the factor after as many samples. Neither cutting the step into other micro-batches
    nor, with twice the steps, halving it changes the rate (ViLT#19); the number of ranks is not
    known to the schedule."""

    def factors(size: int, per_step: int) -> dict[int, float]:
        config = replace(
            RUN,
            schedule=schedule,
            warmup_from=1 / 3,
            micro_batch_size=size,
            micro_batches_per_step=per_step,
            num_steps=12_800 // (size * per_step),
        )
        samples = size * per_step
        return {n * samples: rate_factor(n, config) for n in range(config.num_steps)}

    expected = factors(64, 2)
    for size, per_step in ((128, 1), (32, 4), (16, 8), (8, 8), (32, 2)):
        got = factors(size, per_step)
        for seen, factor in expected.items():
            assert got[seen] == pytest.approx(factor, rel=1e-12), (size, per_step, seen)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_no_rise_and_nothing_but_rise(warmup: float) -> None:
    """Oracle: starts at the peak, or only rises towards it; always within (0, 1]."""
    factors = [rate_factor(step, replace(RUN, warmup=warmup)) for step in range(100)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[0] == (1.0 if warmup == 0 else pytest.approx(1 / 101))
    assert (factors == sorted(factors)) == (warmup == 1.0)


def test_objectives_without_weight_are_left_out() -> None:
    """Oracle: the names in the order that masking needs (mismatched texts before masks)."""
    assert list(make_objectives(PretrainConfig())) == ["itm", "mlm", "omvm", "pra"]
    plain = PretrainConfig(omvm=OmvmConfig(weight=0), pra=PraConfig(weight=0))
    assert list(make_objectives(plain)) == ["itm", "mlm"]
    assert make_objectives(PretrainConfig(mlm=MlmConfig(weight=3)))["mlm"][0] == 3


@pytest.mark.parametrize(
    "make, named",
    [
        (lambda: PretrainConfig(num_steps=0), "num_steps"),
        (lambda: PretrainConfig(num_workers=-1), "num_workers"),
        (lambda: PretrainConfig(zero_stage=4), "zero_stage"),
        (lambda: PretrainConfig(precision="fp8"), "precision"),
        (lambda: PretrainConfig(save_precision="bf16"), "save_precision"),
        (lambda: PretrainConfig(checkpoint_activations=("neck",)), "checkpoint_activations"),
        (lambda: PretrainConfig(warmup_from=2), "warmup_from"),
        (lambda: PretrainConfig(schedule="square"), "schedule"),
        (lambda: PretrainConfig(warmup=1.5), "warmup"),
        (lambda: MlmConfig(probability=2), "mlm.probability"),
        (lambda: ItmConfig(mismatch=-1), "itm.mismatch"),
        (lambda: OmvmConfig(num_objects=0), "omvm.num_objects"),
        (lambda: OmvmConfig(feature_weight=-1), "omvm.feature_weight"),
        (lambda: PraConfig(region="box"), "pra.region"),
        (lambda: PraConfig(target_temperature=0), "pra.target_temperature"),
        (
            lambda: PretrainConfig(
                mlm=MlmConfig(weight=0),
                itm=ItmConfig(weight=0),
                omvm=OmvmConfig(weight=0),
                pra=PraConfig(weight=0),
            ),
            "every objective's weight",
        ),
    ],
)
def test_settings_that_cannot_be(make: Callable[[], object], named: str) -> None:
    """Oracle: ValueError naming the field."""
    with pytest.raises(ValueError, match=named):
        make()
