"""Masked language modelling: the loss, its gradient, what is masked and how."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from pretrain_fixtures import TINY, random_batch, tiny_student, toy_tokenizer
from transformers import DataCollatorForLanguageModeling

from stages.pretrain.data.batch import Batch
from stages.pretrain.objectives.config import MlmConfig
from stages.pretrain.objectives.mlm import IGNORED, Mlm, spread_over_words
from stages.student.network import Student
from stages.student.outputs import Cells, Hidden
from stages.student.text.word_ids import word_ids_of

NO_CELLS = cast(Cells, None)


def _score(batch: Batch, text: torch.Tensor, student: Any) -> tuple[torch.Tensor, dict]:
    hidden = Hidden(text=text, cells=torch.zeros(len(text), 1, text.shape[-1]))
    scored = Mlm(MlmConfig()).score(cast(Student, student), NO_CELLS, hidden, batch)
    return scored.loss, scored.metrics


def test_the_loss_by_hand() -> None:
    """Oracle: logits (0 0 0) and (ln 2 0 0) for piece 0 cost ln 3 and ln 2; other pieces nothing.
    Both guesses are right (argmax takes the first of equals): 2 of 2."""
    student = SimpleNamespace(mlm_head=lambda hidden, words: hidden, word_embeddings=None)
    batch = random_batch(0, pictures=2, captions=1)
    batch.mlm_labels = torch.tensor([[IGNORED, 0, IGNORED], [0, IGNORED, IGNORED]])
    text = torch.full((2, 3, 3), 77.0)
    text[0, 1] = 0.0
    text[1, 0] = torch.tensor([math.log(2), 0, 0])
    loss, metrics = _score(batch, text, student)
    assert loss.item() == pytest.approx((math.log(3) + math.log(2)) / 2, rel=1e-6)
    assert [float(v) for v in metrics["accuracy"]] == [2.0, 2.0]


def test_loss_and_gradient_are_those_of_a_loop() -> None:
    """Oracle: a loop over chosen pieces that takes BERT's head apart, term by term."""
    student = tiny_student()
    batch = random_batch(1, vocab=len(toy_tokenizer()))
    Mlm(MlmConfig(probability=0.5)).mask(batch, toy_tokenizer(), np.random.default_rng(2))
    text = torch.randn(*batch.tokens.shape, 32, requires_grad=True)
    head, words = student.mlm_head, student.word_embeddings
    losses = []
    for b, row in enumerate(batch.mlm_labels.tolist()):
        for t, label in enumerate(row):
            if label == IGNORED:
                continue
            h = text[b, t] @ head.transform.weight.T + head.transform.bias
            h = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
            h = (h - h.mean()) / torch.sqrt(((h - h.mean()) ** 2).mean() + head.norm.eps)
            logits = words @ (h * head.norm.weight + head.norm.bias) + head.bias
            losses.append(-(logits[label] - torch.log(torch.exp(logits).sum())))
    assert len(losses) > 5
    slow = torch.stack(losses).mean()
    fast, _ = _score(batch, text, student)
    torch.testing.assert_close(fast, slow)
    wanted = [text, words, head.transform.weight, head.bias]
    for got, expected in zip(torch.autograd.grad(fast, wanted), torch.autograd.grad(slow, wanted)):
        assert expected.abs().sum() > 0
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("head", ["bert", "tied"])
def test_gradients_are_those_of_finite_differences(head: Any) -> None:
    """Oracle: torch.autograd.gradcheck in float64, by the text and by ten rows of the word
    embeddings, which are the head's too."""
    student = tiny_student(replace(TINY, mlm_head=head)).double()
    batch = random_batch(2, pictures=2, captions=1)
    batch.mlm_labels[0, 1], batch.mlm_labels[1, 2] = 7, 3
    text = torch.randn(2, 9, 32, dtype=torch.float64)

    def loss(chosen: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Of the two pieces with a label, and of words 0 to 9."""
        seen = text.clone()
        seen[0, 1], seen[1, 2] = chosen
        embeddings = torch.cat([words, student.word_embeddings[10:].detach()])
        stand_in = SimpleNamespace(
            mlm_head=lambda hidden, _: student.mlm_head(hidden, embeddings), word_embeddings=None
        )
        return _score(batch, seen, stand_in)[0]

    chosen = torch.randn(2, 32, dtype=torch.float64, requires_grad=True)
    words = student.word_embeddings[:10].detach().requires_grad_()
    assert torch.autograd.gradcheck(loss, (chosen, words))


def test_nothing_chosen_costs_nothing_and_keeps_the_graph() -> None:
    """Oracle: the loss is 0, and its backward pass gives zeros everywhere."""
    student = tiny_student()
    batch = random_batch(3)
    text = torch.randn(*batch.tokens.shape, 32, requires_grad=True)
    loss, metrics = _score(batch, text, student)
    loss.backward()
    assert loss.item() == 0 and text.grad is not None and not text.grad.any()
    assert [float(v) for v in metrics["accuracy"]] == [0.0, 0.0]


def test_what_becomes_of_chosen_pieces() -> None:
    """Oracle: BERT's shares. 15 % of ordinary pieces are chosen; of these 80 % become [MASK], a
    tenth is drawn again (of V pieces one is the same by chance and one is [MASK]), the rest stays.
    Each within four standard errors of a binomial count."""
    tokenizer = toy_tokenizer()
    vocab = len(tokenizer)
    batch = random_batch(4, pictures=2000, captions=4, objects=1, grid=(1, 1), vocab=vocab)
    batch.matched[:] = True
    before = batch.tokens.clone()
    Mlm(MlmConfig()).mask(batch, tokenizer, np.random.default_rng(5))
    chosen = batch.mlm_labels != IGNORED
    assert torch.equal(batch.mlm_labels[chosen], before[chosen])
    assert torch.equal(batch.tokens[~chosen], before[~chosen])
    assert not (chosen & ~batch.ordinary).any()
    num = int(chosen.sum())
    assert num > 5000
    _near(num, int(batch.ordinary.sum()), 0.15)
    after, first = batch.tokens[chosen], before[chosen]
    _near(int((after == tokenizer.mask_token_id).sum()), num, 0.8 + 0.1 / vocab)
    _near(int((after == first).sum()), num, 0.1 + 0.1 / vocab)


def _near(count: int, total: int, share: float) -> None:
    error = math.sqrt(total * share * (1 - share))
    assert abs(count - total * share) < 4 * error, (count / total, share)


@pytest.mark.parametrize("matched_only", [True, False])
def test_specials_are_never_chosen(matched_only: bool) -> None:
    """Oracle: with probability 1 exactly the ordinary pieces are chosen, those of mismatched texts
    only where all texts teach; [CLS], [SEP] and padding are as they were."""
    batch = random_batch(6)
    before = batch.tokens.clone()
    config = MlmConfig(probability=1.0, matched_only=matched_only)
    Mlm(config).mask(batch, toy_tokenizer(), np.random.default_rng(0))
    chosen = batch.mlm_labels != IGNORED
    learns = batch.matched[:, None] | torch.tensor(not matched_only)
    assert not batch.matched.all() and torch.equal(chosen, batch.ordinary & learns)
    assert torch.equal(batch.tokens[~batch.ordinary], before[~batch.ordinary])


def test_masks_do_not_show_which_captions_are_mismatched() -> None:
    """Oracle: with the same draws the student sees the same pieces, whatever is matched."""
    seen = []
    for matched in (True, False):
        batch = random_batch(7)
        batch.matched[:] = matched
        Mlm(MlmConfig()).mask(batch, toy_tokenizer(), np.random.default_rng(1))
        seen.append(batch.tokens)
    assert torch.equal(*seen)
    assert not torch.equal(seen[0], random_batch(7).tokens)


def test_words_are_masked_as_transformers_masks_them() -> None:
    """Oracle: transformers' whole word masking, given the same draws for first pieces: the same
    numbers of words and the same pieces, with words of several pieces and punctuation."""
    tokenizer = toy_tokenizer()
    texts = ["a zxqv, redblue circle!", "red", "", "(big-small) star  unfathomably left"]
    encoded = tokenizer(
        texts,
        padding=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_tensors="pt",
    )
    offsets, special = encoded["offset_mapping"], encoded["special_tokens_mask"]
    words = word_ids_of(offsets, special)
    theirs, not_first = DataCollatorForLanguageModeling._calc_word_ids_and_prob_mask(
        offsets.numpy(), special.numpy()
    )
    assert torch.equal(words >= 0, special == 0)
    assert (words.max(dim=1).values + 1).tolist()[1:3] == [1, 0]
    ordinary = words >= 0
    for row, wanted in zip(words, torch.from_numpy(theirs)):
        # Numbers may begin elsewhere; what counts is which pieces share one.
        own = row[row >= 0]
        assert torch.equal(own, wanted[row >= 0] - wanted[row >= 0].amin() if len(own) else own)
    drawn = torch.rand(words.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    wanted = DataCollatorForLanguageModeling._whole_word_mask(
        theirs, (drawn & ordinary).numpy() & ~not_first
    )
    got = spread_over_words(drawn & ordinary, words)
    assert torch.equal(got, torch.from_numpy(wanted)) and got.any() and not got[ordinary].all()


def test_whole_words_keep_the_share_of_pieces() -> None:
    """Oracle: as many pieces as without, within four standard errors of words of three pieces; a
    word is masked whole or not at all."""
    batch = random_batch(8, pictures=1500, captions=2, objects=1, grid=(1, 1))
    batch.tokens[:] = batch.texts[:] = 7
    batch.ordinary[:] = True
    batch.words = torch.arange(9).div(3, rounding_mode="floor").expand(3000, 9).clone()
    batch.matched[:] = True
    Mlm(MlmConfig(whole_words=True)).mask(batch, toy_tokenizer(), np.random.default_rng(3))
    chosen = (batch.mlm_labels != IGNORED).view(3000, 3, 3)
    assert torch.equal(chosen.any(dim=2), chosen.all(dim=2))
    _near(int(chosen[..., 0].sum()), 9000, 0.15)
