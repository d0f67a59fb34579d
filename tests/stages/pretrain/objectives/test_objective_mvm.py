"""Masked visual modelling: the loss, and which cells are masked by both rules."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from pretrain_fixtures import random_batch, toy_tokenizer

from stages.pretrain.data.batch import Batch
from stages.pretrain.objectives.config import MvmConfig
from stages.pretrain.objectives.mvm import IGNORED, Mvm
from stages.student.network import Student
from stages.student.outputs import Cells, Hidden
from stages.student.vision.neck_config import DictionaryConfig
from stages.student.vision.visual_dictionary import Dictionary
from stages.training.monitoring.metrics import ObjectiveOutput

NO_CELLS = cast(Cells, None)
GRID = (4, 5)


def _cells(batch: Batch, seed: int, num_codes: int = 6) -> Cells:
    """Codes of noise, and padding in the last column of every other picture."""
    random = torch.Generator().manual_seed(seed)
    num = len(batch.keys)
    inside = torch.ones(num, *GRID, dtype=torch.bool)
    inside[1::2, :, -1] = False
    codes = torch.randint(num_codes, (num, GRID[0] * GRID[1]), generator=random)
    codes = torch.where(torch.rand(codes.shape, generator=random) < 0.3, 0, codes)
    return Cells(
        features=torch.zeros(num, 20, 1), inside=inside.flatten(1), rows=4, columns=5, codes=codes
    )


def _hide(config: MvmConfig, batch: Batch, cells: Cells, seed: int = 0) -> None:
    objective = Mvm(config)
    objective.mask(batch, toy_tokenizer(), np.random.default_rng(seed))
    objective.mask_cells(cells, batch)


def _score(
    config: MvmConfig, batch: Batch, hidden: torch.Tensor, codes: torch.Tensor
) -> ObjectiveOutput:
    dictionary = Dictionary(DictionaryConfig(num_codes=len(codes)), codes.shape[1])
    dictionary.codes = codes
    student = cast(Student, SimpleNamespace(dictionary=dictionary))
    return Mvm(config).score(student, NO_CELLS, Hidden(text=hidden, cells=hidden), batch)


def test_the_loss_by_hand() -> None:
    """Oracle: outputs (3, 0) and (0, 0.2) beside codes (1, 0), (0, 7) and a zero code. Cosines are
    (1, 0, 0) and (0, 1, 0); over a temperature of 1/2 the right ones cost ln(e2 + 2) - 2, the wrong
    one ln(e2 + 2)."""
    batch = random_batch(0, pictures=1, captions=1)
    batch.mvm_labels = torch.tensor([[0, IGNORED, 0]])
    hidden = torch.tensor([[[3.0, 0], [9, 9], [0, 0.2]]])
    codes = torch.tensor([[1.0, 0], [0, 7], [0, 0]])
    scored = _score(MvmConfig(temperature=0.5), batch, hidden, codes)
    log_sum = math.log(math.exp(2) + 2)
    assert scored.loss.item() == pytest.approx((log_sum - 2 + log_sum) / 2, rel=1e-6)
    assert [float(v) for v in scored.metrics["accuracy"]] == [1.0, 2.0]
    assert [float(v) for v in scored.metrics["hidden_cells"]] == [2.0, 1.0]
    epsilon = _score(MvmConfig(temperature=0.5, mean_epsilon=2.0), batch, hidden, codes)
    assert epsilon.loss.item() == pytest.approx(scored.loss.item() / 2, rel=1e-6)


def test_loss_and_gradient_are_those_of_a_loop() -> None:
    """Oracle: a loop over masked cells and codes."""
    batch = random_batch(1, pictures=4, grid=GRID)
    _hide(MvmConfig(probability=1.0), batch, _cells(batch, 1))
    hidden = torch.randn(8, 20, 7, requires_grad=True)
    codes = torch.randn(6, 7)
    losses = []
    for b, row in enumerate(batch.mvm_labels.tolist()):
        for c, label in enumerate(row):
            if label != IGNORED:
                h = hidden[b, c]
                logits = torch.stack([h @ k / h.norm() / k.norm() / 0.1 for k in codes])
                losses.append(torch.log(torch.exp(logits).sum()) - logits[label])
    assert len(losses) > 4
    slow, fast = torch.stack(losses).mean(), _score(MvmConfig(), batch, hidden, codes).loss
    torch.testing.assert_close(fast, slow)
    for got, expected in zip(torch.autograd.grad(fast, hidden), torch.autograd.grad(slow, hidden)):
        assert expected.abs().sum() > 0
        torch.testing.assert_close(got, expected)


def test_nothing_hidden_costs_nothing_and_keeps_the_graph() -> None:
    """Oracle: before the dictionary has started nothing is masked; loss 0, gradients zero."""
    for rule in ("share", "released"):
        batch = random_batch(2, grid=GRID)
        cells = _cells(batch, 2)
        assert cells.codes is not None
        cells.codes[:] = -1
        _hide(MvmConfig(rule=cast(Any, rule), probability=1.0), batch, cells)
        assert not batch.masked_cells.any() and (batch.mvm_labels == IGNORED).all()
        hidden = torch.randn(6, 20, 7, requires_grad=True)
        scored = _score(MvmConfig(mean_epsilon=1e-6), batch, hidden, torch.randn(6, 7))
        scored.loss.backward()
        assert scored.loss.item() == 0 and hidden.grad is not None and not hidden.grad.any()


def _slow_share(batch: Batch, cells: Cells, share: float) -> list[set[int]]:
    assert cells.codes is not None
    hidden: list[set[int]] = []
    for b, order in enumerate(batch.anchors.tolist()):
        n = int(batch.picture[b])
        seen = [c for c in range(20) if cells.inside[n, c]]
        code = cells.codes[n].tolist()
        taken: set[int] = set()
        for cell in order:
            own = {c for c in seen if code[c] == code[cell]}
            fits = len(own) <= (0.5 - share) * len(seen)
            if cell in seen and fits and len(taken) < share * len(seen):
                taken |= own
        hidden.append(taken)
    return hidden


def test_codes_are_hidden_whole_until_the_share_is_reached() -> None:
    """Oracle: the rule as a loop over cells in their drawn order, on random codes; and its bounds:
    never padding, never half of a picture; labels are the codes, only of matched pairs."""
    counts = []
    for seed in range(12):
        batch = random_batch(seed, pictures=6, grid=GRID)
        cells = _cells(batch, seed)
        assert cells.codes is not None
        _hide(MvmConfig(probability=1.0), batch, cells, seed)
        assert (batch.anchors.sort(dim=1).values == torch.arange(20)).all()
        for b, wanted in enumerate(_slow_share(batch, cells, 0.15)):
            got = set(batch.masked_cells[b].nonzero()[:, 0].tolist())
            assert got == wanted
            inside = cells.inside[batch.picture[b]]
            assert inside[list(got)].all() and len(got) <= inside.sum() / 2
            counts.append(len(got) / float(inside.sum()))
        codes = cells.codes[batch.picture]
        wanted_labels = batch.masked_cells & batch.matched[:, None]
        assert torch.equal(batch.mvm_labels != IGNORED, wanted_labels)
        assert torch.equal(batch.mvm_labels[wanted_labels], codes[wanted_labels])
    assert 0.15 <= np.mean(counts) < 0.35


def test_the_released_rule() -> None:
    """Oracle: sets. All pairs drawn share one cell of the grid; where it is visible exactly the
    visible cells of its code are masked; in the padding, or undrawn, nothing; mismatched pairs
    teach too. Drawn about as often as the probability says."""
    config = MvmConfig(rule="released", probability=0.4, matched_only=False)
    num_drawn, in_padding = 0, 0
    for seed in range(40):
        batch = random_batch(seed, pictures=6, grid=GRID)
        cells = _cells(batch, seed)
        assert cells.codes is not None
        _hide(config, batch, cells, seed)
        anchors = set(batch.anchors.flatten().tolist()) - {-1}
        assert len(anchors) <= 1
        for b, (anchor,) in enumerate(batch.anchors.tolist()):
            n = int(batch.picture[b])
            num_drawn += anchor >= 0
            own = cells.inside[n] & (cells.codes[n] == cells.codes[n, anchor])
            if anchor < 0 or not cells.inside[n, anchor]:
                own = torch.zeros(20, dtype=torch.bool)
                in_padding += anchor >= 0
            assert torch.equal(batch.masked_cells[b], own)
        labelled = batch.mvm_labels != IGNORED
        assert torch.equal(labelled, batch.masked_cells)
    assert in_padding and abs(num_drawn / 480 - 0.4) < 4 * math.sqrt(0.24 / 480)


def test_pairs_that_are_not_drawn_see_everything() -> None:
    """Oracle: what the rule masks in all pairs is masked whole or not at all, about as often as
    the probability says."""
    num_masked = 0
    for seed in range(40):
        batches = [random_batch(seed, pictures=6, grid=GRID) for _ in range(2)]
        for batch, probability in zip(batches, (1.0, 0.3)):
            cells = _cells(batch, seed)
            _hide(MvmConfig(probability=probability), batch, cells, seed)
        every, some = (batch.masked_cells for batch in batches)
        drawn = some.any(dim=1)
        assert every.any(dim=1).all() and torch.equal(some, every & drawn[:, None])
        num_masked += int(drawn.sum())
    assert abs(num_masked / 480 - 0.3) < 4 * math.sqrt(0.21 / 480)


@pytest.mark.parametrize("rule", ["share", "released"])
def test_masks_do_not_show_which_captions_are_mismatched(rule: str) -> None:
    """Oracle: with the same draws the student sees the same cells, whatever is matched."""
    seen = []
    for matched in (True, False):
        batch = random_batch(5, grid=GRID)
        batch.matched[:] = matched
        _hide(MvmConfig(rule=cast(Any, rule), probability=1.0), batch, _cells(batch, 0), 3)
        seen.append(batch.masked_cells)
        assert (batch.mvm_labels != IGNORED).any() == matched
    assert torch.equal(*seen) and seen[0].any()


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"share": 0.5}, "mvm.share: got 0.5"),
        ({"probability": 2.0}, "mvm.probability: got 2.0"),
        ({"temperature": 0.0}, "mvm.temperature: got 0.0"),
        ({"weight": -1.0}, "mvm.weight: got"),
    ],
)
def test_settings_that_cannot_be(fields: dict, words: str) -> None:
    """Oracle: ValueError naming the field."""
    with pytest.raises(ValueError, match=words):
        MvmConfig(**fields)
