"""Object-guided masked vision modelling: the losses, and which cells are masked."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from pretrain_fixtures import in_double, random_batch, tiny_student, toy_tokenizer
from torch.nn import functional as F

from stages.pretrain.data.batch import Batch
from stages.pretrain.objectives.config import OmvmConfig
from stages.pretrain.objectives.omvm import Omvm
from stages.student.network import Student
from stages.student.outputs import Cells, Hidden
from stages.training.monitoring.metrics import ObjectiveOutput

NO_CELLS = cast(Cells, None)


def _score(
    config: OmvmConfig, batch: Batch, cells: torch.Tensor, student: Student
) -> ObjectiveOutput:
    hidden = Hidden(text=torch.zeros(len(cells), 1, cells.shape[-1]), cells=cells)
    return Omvm(config).score(student, NO_CELLS, hidden, batch)


def _mask(batch: Batch, config: OmvmConfig, seed: int = 0) -> None:
    Omvm(config).mask(batch, toy_tokenizer(), np.random.default_rng(seed))


def _cells(batch: Batch) -> torch.Tensor:
    return torch.randn(*batch.masked_cells.shape, 32, requires_grad=True)


@pytest.mark.parametrize(
    "soft, label_loss",
    [(True, -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))), (False, -math.log(0.75))],
)
def test_the_loss_by_hand(soft: bool, label_loss: float) -> None:
    """Oracle: cells (0, 0 | 1, 0) and (2 ln 3, 0 | 3, 2) have the mean (ln 3, 0 | 2, 1). So p is
    (0.75, 0.25); scores 0.6 and 0.2 make q the same. The teacher's feature (1, 3) is off by
    (1, -2): mean square 2.5. Weights 2 and 3."""
    student = SimpleNamespace(object_head=lambda region: (region[:, :2], region[:, 2:]))
    batch = random_batch(0, pictures=1, captions=1)
    batch.regions = torch.tensor([[[0.0, 0.0, 0.0], [0.5, 0.0, 0.5]]])
    batch.label, batch.top_label = torch.tensor([[1, 0]]), torch.tensor([[[1, 0], [0, 1]]])
    batch.top_score = torch.tensor([[[0.9, 0.1], [0.6, 0.2]]])
    batch.feature = torch.tensor([[[7.0, 7.0], [1.0, 3.0]]])
    batch.masked_objects = torch.tensor([[1, -1]])
    cells = torch.tensor([[[0, 0, 1, 0], [9, 9, 9, 9], [2 * math.log(3), 0, 3, 2]]])
    config = OmvmConfig(label_weight=2, feature_weight=3, soft_label=soft)
    scored = _score(config, batch, cells, cast(Student, student))
    assert scored.loss.item() == pytest.approx(2 * label_loss + 3 * 2.5, rel=1e-6)
    assert [float(v) for v in scored.metrics["label_accuracy"]] == [1.0, 1.0]
    assert [float(v) for v in scored.metrics["feature_loss"]] == [2.5, 1.0]


@pytest.mark.parametrize(
    "kind, wanted",
    [
        ("l2", (1 + 4) / 2),
        ("smooth_l1", (1 / 2 + 3 / 2) / 2),  # d^2 / 2 up to 1, |d| - 1/2 beyond
        ("cosine", 1 - 5 / math.sqrt(5 * 10)),
    ],
)
def test_feature_losses_by_hand(kind: Any, wanted: float) -> None:
    """Oracle: arithmetic on (2, 1) beside the teacher's (1, 3)."""
    student = SimpleNamespace(object_head=lambda region: (region[:, :2], region[:, 2:]))
    batch = random_batch(0, pictures=1, captions=1, objects=1)
    batch.regions = torch.tensor([[[1.0]]])
    batch.label, batch.top_label = torch.tensor([[0]]), torch.tensor([[[0, 1, 1]]])
    batch.feature, batch.masked_objects = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[0]])
    config = OmvmConfig(feature_loss=kind, label_weight=0)
    scored = _score(config, batch, torch.tensor([[[0.0, 0, 2, 1]]]), cast(Student, student))
    assert scored.loss.item() == pytest.approx(wanted, rel=1e-6)
    assert float(scored.metrics["feature_loss"][0]) == pytest.approx(wanted, rel=1e-6)


def _slow(config: OmvmConfig, batch: Batch, cells: torch.Tensor, student: Student) -> torch.Tensor:
    labels, features = [], []
    for b, rows in enumerate(batch.masked_objects.tolist()):
        n = int(batch.picture[b])
        for row in rows:
            if row < 0:
                continue
            own = [cells[b, c] * w for c, w in enumerate(batch.regions[n, row]) if w]
            logits, feature = student.object_head(torch.stack(own).sum(0)[None])
            log_p = torch.log(F.softmax(logits[0], dim=0))
            if config.soft_label:
                total = float(batch.top_score[n, row].sum())
                pairs = zip(batch.top_label[n, row].tolist(), batch.top_score[n, row].tolist())
                labels.append(-sum(s / total * log_p[k] for k, s in pairs))
            else:
                labels.append(-log_p[int(batch.label[n, row])])
            features.append(((feature[0] - batch.feature[n, row]) ** 2).sum() / len(feature[0]))
    return (
        config.label_weight * torch.stack(labels).mean()
        + config.feature_weight * torch.stack(features).mean()
    )


@pytest.mark.parametrize("soft", [True, False])
def test_loss_and_gradient_are_those_of_a_loop(soft: bool) -> None:
    """Oracle: a loop over masked objects and their cells, which have weights of their own."""
    student, batch = tiny_student(), random_batch(1, pictures=8)
    batch.regions *= torch.rand(batch.regions.shape)
    config = OmvmConfig(num_objects=2, label_weight=0.7, feature_weight=1.3, soft_label=soft)
    _mask(batch, config)
    cells = _cells(batch)
    assert (batch.masked_objects >= 0).sum() > 4
    fast, slow = _score(config, batch, cells, student).loss, _slow(config, batch, cells, student)
    torch.testing.assert_close(fast, slow)
    wanted = [cells, student.object_head.label.weight, student.object_head.feature.weight]
    for got, expected in zip(torch.autograd.grad(fast, wanted), torch.autograd.grad(slow, wanted)):
        assert expected.abs().sum() > 0
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("kind", ["l2", "smooth_l1", "cosine"])
@pytest.mark.parametrize("soft", [True, False])
def test_gradients_are_those_of_finite_differences(kind: Any, soft: bool) -> None:
    """Oracle: torch.autograd.gradcheck in float64, by cells and by the head's weights."""
    student, batch = tiny_student().double(), random_batch(6, pictures=2, captions=1, grid=(1, 3))
    batch = in_double(batch)
    config = OmvmConfig(num_objects=2, feature_loss=kind, soft_label=soft)
    _mask(batch, config)
    batch.masked_objects[1] = torch.tensor([0, 2])
    cells = _cells(batch).detach().double().requires_grad_()
    bias = student.object_head.transform.bias

    def loss(cells: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return _score(config, batch, cells, student).loss

    assert torch.autograd.gradcheck(loss, (cells, bias))


def test_order_and_padding_of_objects_do_not_matter() -> None:
    """Oracle: the loss of the same objects in another order, and with padding rows after them."""
    student, batch, config = tiny_student(), random_batch(2, pictures=4), OmvmConfig(num_objects=2)
    _mask(batch, config)
    cells = _cells(batch)
    expected = _score(config, batch, cells, student).loss
    order = torch.tensor([2, 0, 3, 1])
    for name in ("regions", "label", "top_label", "top_score", "feature"):
        value = getattr(batch, name)[:, order]
        setattr(batch, name, torch.cat([value, torch.full_like(value[:, :2], -1)], dim=1))
    batch.regions[:, 4:] = 0
    place = order.argsort()
    batch.masked_objects = torch.where(
        batch.masked_objects >= 0, place[batch.masked_objects.clamp(min=0)], -1
    )
    torch.testing.assert_close(_score(config, batch, cells, student).loss, expected)


def test_a_picture_without_objects_costs_nothing_and_keeps_the_graph() -> None:
    """Oracle: no object anywhere: nothing is masked, the loss is 0 and its gradients are zeros."""
    student, batch = tiny_student(), random_batch(3)
    batch.label[:], batch.regions[:] = -1, 0
    _mask(batch, OmvmConfig(mask_probability=1))
    assert not batch.masked_cells.any() and (batch.masked_objects == -1).all()
    cells = _cells(batch)
    scored = _score(OmvmConfig(), batch, cells, student)
    scored.loss.backward()
    assert scored.loss.item() == 0 and cells.grad is not None and not cells.grad.any()


@pytest.mark.parametrize("num_objects", [1, 2, 9])
def test_all_cells_of_a_hidden_object_are_masked_and_no_others(num_objects: int) -> None:
    """Oracle: sets. Masked objects exist, are distinct and as many as wanted or there are; the
    masked cells are the union of their regions."""
    for seed in range(10):
        batch = random_batch(seed, pictures=5)
        batch.matched[:] = True
        _mask(batch, OmvmConfig(num_objects=num_objects, mask_probability=1), seed)
        for b, rows in enumerate(batch.masked_objects.tolist()):
            n = int(batch.picture[b])
            real = [row for row in rows if row >= 0]
            exist = [row for row, label in enumerate(batch.label[n].tolist()) if label >= 0]
            assert len(set(real)) == len(real) == min(num_objects, len(exist))
            assert set(real) <= set(exist)
            union = {c for row in real for c in batch.regions[n, row].nonzero()[:, 0].tolist()}
            assert set(batch.masked_cells[b].nonzero()[:, 0].tolist()) == union


def test_an_object_without_a_cell_is_not_drawn() -> None:
    """Oracle: rows of objects that have cells; the rest have nothing to mask or to pool."""
    batch = random_batch(8, pictures=6)
    batch.matched[:] = True
    batch.regions[:, 1] = 0
    _mask(batch, OmvmConfig(num_objects=4))
    drawn = batch.masked_objects[batch.picture == 5]
    assert (drawn != 1).all() and sorted(drawn[0].tolist()) == [-1, 0, 2, 3]


@pytest.mark.parametrize(
    "draw, shares",
    [("uniform", (1 / 3, 1 / 3)), ("score", (0.1, 0.3)), ("area", (1 / 6, 2 / 6))],
)
def test_which_objects_are_drawn(draw: Any, shares: tuple[float, float]) -> None:
    """Oracle: shares of 3000 draws within four standard errors, for scores 0.1, 0.3, 0.6 and one,
    two and three cells. Of two drawn at once, the first is drawn so too, and both differ."""
    batch = random_batch(4, pictures=1500, captions=2, objects=3)
    batch.label[:], batch.matched[:] = 0, True
    batch.score[:] = torch.tensor([0.1, 0.3, 0.6])
    batch.regions[:] = 0
    for row, num_cells in enumerate((1, 2, 3)):
        batch.regions[:, row, :num_cells] = 1 / num_cells
    _mask(batch, OmvmConfig(draw=draw, num_objects=2))
    first, second = batch.masked_objects.T
    assert (first != second).all() and (batch.masked_objects >= 0).all()
    for row, share in enumerate(shares):
        got = (first == row).float().mean().item()
        assert abs(got - share) < 4 * math.sqrt(share * (1 - share) / 3000), (row, got)


def test_how_often_a_drawn_object_is_hidden() -> None:
    """Oracle: a binomial count within four standard errors; predicted either way; every object is
    drawn about as often as any other."""
    batch = random_batch(4, pictures=1500, captions=2, objects=3)
    batch.label[:], batch.matched[:] = 0, True
    batch.regions[:] = torch.eye(3, batch.regions.shape[-1])
    _mask(batch, OmvmConfig(mask_probability=0.3))
    assert (batch.masked_objects >= 0).all()
    drawn = torch.bincount(batch.masked_objects[:, 0], minlength=3) / 3000
    assert ((drawn - 1 / 3).abs() < 4 * math.sqrt(2 / 9 / 3000)).all()
    hidden = batch.masked_cells.any(dim=1).float().mean().item()
    assert abs(hidden - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 3000)


def test_masks_do_not_show_which_captions_are_mismatched() -> None:
    """Oracle: with the same draws the student sees the same cells, whatever is matched; only
    matched pairs teach, unless all shall."""
    seen = []
    for matched in (True, False):
        batch = random_batch(5)
        batch.matched[:] = matched
        _mask(batch, OmvmConfig(mask_probability=0.9))
        seen.append(batch.masked_cells)
        assert (batch.masked_objects >= 0).any() == matched
    assert torch.equal(*seen) and seen[0].any()
    batch.matched[:] = False
    _mask(batch, OmvmConfig(matched_only=False))
    assert (batch.masked_objects >= 0).any()
