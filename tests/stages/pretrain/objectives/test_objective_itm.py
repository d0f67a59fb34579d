"""Image-text matching: the loss, and which texts become mismatched."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from pretrain_fixtures import TINY, random_batch, tiny_student, toy_tokenizer

from stages.pretrain.data.batch import Batch
from stages.pretrain.objectives.config import ItmConfig
from stages.pretrain.objectives.itm import Itm
from stages.student.network import Student
from stages.student.outputs import Cells, Hidden

NO_CELLS = cast(Cells, None)


def _hidden(text: torch.Tensor) -> Hidden:
    return Hidden(text=text, cells=torch.zeros(len(text), 1, text.shape[-1]))


def _mask(batch: Batch, mismatch: float = 0.5, seed: int = 0) -> None:
    Itm(ItmConfig(mismatch=mismatch)).mask(batch, toy_tokenizer(), np.random.default_rng(seed))


def _with_own_texts(batch: Batch) -> Batch:
    """Every text says in its piece 1 which pair it was written for."""
    batch.tokens[:, 1] = 100 + torch.arange(len(batch.tokens))
    return batch


def test_the_loss_by_hand() -> None:
    """Oracle: odds of 3 to 1 for "yes": a matched pair costs ln(4 / 3), a mismatched one ln 4; only
    [CLS] is looked at; the first is right, the second wrong."""
    student = SimpleNamespace(itm_head=lambda cls: cls)
    batch = random_batch(0, pictures=2, captions=1)
    batch.matched = torch.tensor([True, False])
    text = torch.full((2, 4, 2), 99.0)
    text[:, 0] = torch.tensor([0, math.log(3)])
    scored = Itm(ItmConfig()).score(cast(Student, student), NO_CELLS, _hidden(text), batch)
    assert scored.loss.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2, rel=1e-6)
    assert [float(v) for v in scored.metrics["accuracy"]] == [1.0, 2.0]


def test_loss_and_gradient_are_those_of_a_loop() -> None:
    """Oracle: a loop over pairs with BERT's pooler written out."""
    student, batch = tiny_student(), random_batch(1, pictures=5)
    assert 0 < batch.matched.sum() < len(batch.matched)
    text = torch.randn(*batch.tokens.shape, 32, requires_grad=True)
    head, slow = student.itm_head, torch.zeros(())
    for b, matched in enumerate(batch.matched.tolist()):
        pooled = torch.tanh(head.pool.weight @ text[b, 0] + head.pool.bias)
        no, yes = head.classify.weight @ pooled + head.classify.bias
        wrong, right = (no, yes) if matched else (yes, no)
        slow = slow + torch.log(1 + torch.exp(wrong - right)) / len(batch.matched)
    fast = Itm(ItmConfig()).score(student, NO_CELLS, _hidden(text), batch).loss
    torch.testing.assert_close(fast, slow)
    wanted = [text, head.pool.weight, head.classify.bias]
    for got, expected in zip(torch.autograd.grad(fast, wanted), torch.autograd.grad(slow, wanted)):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("head", ["pooled", "linear"])
def test_gradients_are_those_of_finite_differences(head: Any) -> None:
    """Oracle: torch.autograd.gradcheck in float64, by the texts and by the head's last weights."""
    student = tiny_student(replace(TINY, itm_head=head)).double()
    batch = random_batch(6, pictures=3, captions=1)
    batch.matched = torch.tensor([True, False, True])
    text = torch.randn(3, 2, 32, dtype=torch.float64, requires_grad=True)

    def loss(text: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return Itm(ItmConfig()).score(student, NO_CELLS, _hidden(text), batch).loss

    assert torch.autograd.gradcheck(loss, (text, student.itm_head.classify.weight))


def test_a_mismatched_caption_comes_from_another_picture_with_its_phrases() -> None:
    """Oracle: piece 1 names the pair that a text was written for. Matched pairs keep theirs,
    mismatched ones have one of another picture; tokens, phrases and ordinary move together."""
    for seed in range(20):
        before, batch = (_with_own_texts(random_batch(seed, pictures=4)) for _ in range(2))
        before.matched[:] = batch.matched[:] = True
        _mask(batch, seed=seed)
        source = batch.tokens[:, 1] - 100
        moved = source != torch.arange(len(source))
        assert torch.equal(batch.matched, ~moved)
        assert (batch.picture[source[moved]] != batch.picture[moved]).all()
        for name in ("tokens", "phrases", "ordinary"):
            assert torch.equal(getattr(batch, name), getattr(before, name)[source]), name
        for name in ("picture", "regions", "similarity", "label"):
            assert torch.equal(getattr(batch, name), getattr(before, name)), name


def test_the_share_of_mismatched_captions() -> None:
    """Oracle: a binomial count, within four standard errors, for two shares; all and none."""
    for share in (0.0, 0.3, 0.5, 1.0):
        batch = random_batch(2, pictures=1000, captions=4, objects=1, grid=(1, 1))
        batch.matched[:] = True
        _mask(batch, share)
        error = math.sqrt(share * (1 - share) / 4000)
        assert abs(1 - batch.matched.float().mean().item() - share) <= 4 * error


def test_every_other_picture_is_drawn() -> None:
    """Oracle: over many draws a text comes from each of the other pictures, about equally."""
    counts = torch.zeros(4)
    for seed in range(300):
        batch = _with_own_texts(random_batch(3, pictures=4, captions=1))
        batch.matched[:] = True
        _mask(batch, 1.0, seed)
        counts[batch.tokens[0, 1] - 100] += 1
    assert counts[0] == 0
    assert (counts[1:] > 60).all(), counts  # 100 expected, standard error 8


def test_sentences_that_the_source_calls_false_stay() -> None:
    """Oracle: a pair that comes in as not matched keeps its text and stays not matched, even if
    every pair is to be mismatched (NLVR's false sentences are the better negatives)."""
    batch = _with_own_texts(random_batch(4, pictures=6))
    false = ~batch.matched.clone()
    assert 0 < false.sum() < len(false)
    _mask(batch, 1.0)
    own = batch.tokens[:, 1] - 100 == torch.arange(len(batch.tokens))
    assert torch.equal(own, false) and not batch.matched.any()


def test_a_picture_alone_keeps_its_texts() -> None:
    """Oracle: with one picture there is no mismatched text to be had, so all stay matched."""
    batch = random_batch(5, pictures=1)
    batch.matched[:] = True
    tokens = batch.tokens.clone()
    _mask(batch, 1.0)
    assert batch.matched.all() and torch.equal(batch.tokens, tokens)
