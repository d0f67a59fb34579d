"""Image-text contrastive learning: the loss, its head, and negatives that it draws for ITM."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from pretrain_fixtures import TINY, random_batch, tiny_student, toy_tokenizer
from torch.nn import functional as F

from stages.pretrain.config import PretrainConfig
from stages.pretrain.data.batch import Batch
from stages.pretrain.model import PretrainModel, make_objectives
from stages.pretrain.objectives.config import ItcConfig, ItmConfig, MlmConfig
from stages.pretrain.objectives.itc import Itc
from stages.pretrain.objectives.itm import Itm
from stages.pretrain.objectives.mlm import Mlm
from stages.pretrain.objectives.objective import ObjectiveOutput
from stages.student.heads import ContrastiveHead
from stages.student.network import Student
from stages.student.outputs import Cells, Hidden

WITH_HEAD = replace(TINY, itc_size=6)


def _score(batch: Batch, label_smoothing: float = 0.0) -> ObjectiveOutput:
    """The objective looks at nothing but the batch."""
    itc = Itc(ItcConfig(weight=1, label_smoothing=label_smoothing))
    return itc.score(cast(Student, None), cast(Cells, None), cast(Hidden, None), batch)


def _batch(picture: list[int], is_true: list[bool], logits: torch.Tensor) -> Batch:
    batch = random_batch(0, pictures=logits.shape[1], captions=1)
    return replace(
        batch,
        picture=torch.tensor(picture),
        is_true=torch.tensor(is_true),
        contrast=logits,
    )


def test_the_loss_by_hand() -> None:
    """Oracle: arithmetic. Two texts of picture 0 and one of picture 1, logits ln 3 for the right
    picture and 0 for the wrong: each text costs ln(4 / 3). Picture 0: its two texts have 3 / 7
    each, ln(7 / 3); picture 1: 3 / 5, ln(5 / 3). All are found."""
    ln3 = math.log(3)
    scored = _score(_batch([0, 0, 1], [True] * 3, torch.tensor([[ln3, 0], [ln3, 0], [0, ln3]])))
    wanted = (math.log(4 / 3) + (math.log(7 / 3) + math.log(5 / 3)) / 2) / 2
    assert scored.loss.item() == pytest.approx(wanted, rel=1e-6)
    assert [float(v) for v in scored.metrics["text_accuracy"]] == [3, 3]
    assert [float(v) for v in scored.metrics["picture_accuracy"]] == [2, 2]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_gradient_are_those_of_a_loop(smoothing: float) -> None:
    """Oracle: a loop over texts and pictures, softmax written out; false texts are left out, and so
    is a picture that has no other."""
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    picture, is_true = [0, 0, 1, 1, 2, 2], [True, True, True, False, False, False]
    fast = _score(_batch(picture, is_true, logits), smoothing).loss
    texts = [b for b in range(6) if is_true[b]]
    p = logits.exp()
    of_texts, of_pictures = [], []
    for b in texts:
        loss = torch.zeros(())
        for n in range(3):
            share = (1 - smoothing) * (n == picture[b]) + smoothing / 3
            loss = loss - share * torch.log(p[b, n] / p[b].sum())
        of_texts.append(loss)
    for n in (0, 1):
        loss = torch.zeros(())
        own = [b for b in texts if picture[b] == n]
        for b in texts:
            share = (1 - smoothing) * (b in own) / len(own) + smoothing / len(texts)
            loss = loss - share * torch.log(p[b, n] / p[texts, n].sum())
        of_pictures.append(loss)
    slow = (sum(of_texts) / 3 + sum(of_pictures) / 2) / 2
    torch.testing.assert_close(fast.double(), slow, rtol=1e-5, atol=1e-6)
    got, expected = (torch.autograd.grad(loss, logits)[0] for loss in (fast, slow))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_no_true_text_costs_nothing() -> None:
    """Oracle: nothing to compare is a loss of 0 with a gradient of zeros."""
    logits = torch.randn(2, 2, requires_grad=True)
    loss = _score(_batch([0, 1], [False, False], logits)).loss
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, logits)[0].any()


def test_gradients_of_the_head_are_those_of_finite_differences() -> None:
    """Oracle: torch.autograd.gradcheck in float64, by cells, texts and temperature."""
    torch.manual_seed(0)
    head = ContrastiveHead(8, 4, 2, 0.2).double()
    inside = torch.tensor([[True, True, False], [True, True, True]])
    cells = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    hidden = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)

    def logits(cells: torch.Tensor, hidden: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return head.compare(head.embed_texts(hidden, inside), head.embed_pictures(cells, inside))

    assert torch.autograd.gradcheck(logits, (cells, hidden, head.log_temperature))


def test_padding_changes_no_vector() -> None:
    """Oracle: the same cells and words without padding, in vectors of length 1."""
    torch.manual_seed(0)
    head = ContrastiveHead(8, 4, 2, 0.07)
    inside = torch.tensor([[True, True, False]])
    cells = torch.randn(1, 3, 8)
    for embed in (head.embed_pictures, head.embed_texts):
        whole = embed(cells, inside)
        torch.testing.assert_close(whole, embed(cells[:, :2], inside[:, :2]))
        torch.testing.assert_close(whole.norm(dim=1), torch.ones(1))


def test_a_text_is_read_alone_and_unmasked() -> None:
    """Oracle: the Transformer's own forward pass over the caption's pieces, mean, map, length 1;
    what MLM and ITM made of the text changes nothing."""
    student, batch = tiny_student(WITH_HEAD), random_batch(3, grid=(2, 2))
    batch.tokens[:] = 4
    real = batch.texts != student.pad_id
    with torch.no_grad():
        got = student.embed_texts(batch.texts)
        for row, own in enumerate(real):
            alone = student.embeddings(batch.texts[row : row + 1, own])
            hidden = student.fusion(alone).last_hidden_state[0]
            wanted = F.normalize(student.contrastive_head.text(hidden.mean(dim=0)), dim=0)
            torch.testing.assert_close(got[row], wanted)


def test_without_a_head_the_error_names_the_fields() -> None:
    """Oracle: the words of the error."""
    with pytest.raises(ValueError, match="student.itc_size above 0"):
        tiny_student().embed_texts(torch.ones(1, 3, dtype=torch.long))


def test_the_model_learns_by_it_alone_and_beside_others() -> None:
    """Oracle: gradients reach the CNN, the Transformer and the head; by itself the loss is that of
    the head's logits written out."""
    for others in (0.0, 1.0):
        config = PretrainConfig(
            itc=ItcConfig(weight=2),
            itm=ItmConfig(weight=others, negatives="itc"),
            mlm=MlmConfig(weight=others),
            omvm=replace(PretrainConfig().omvm, weight=0),
            pra=replace(PretrainConfig().pra, weight=0),
        )
        student, batch = tiny_student(WITH_HEAD), random_batch(4, pictures=4, grid=(2, 2))
        batch.pixels = torch.randn_like(batch.pixels)
        model = PretrainModel(student, make_objectives(config))
        for _, objective in model.objectives.values():
            objective.mask(batch, toy_tokenizer(), np.random.default_rng(0))
        loss, scores = model(batch)
        loss.backward()
        for weight in (
            student.grid.project.weight,
            student.fusion.layer[0].attention.self.query.weight,
            student.contrastive_head.log_temperature,
        ):
            assert weight.grad is not None and weight.grad.any()
        if not others:
            torch.testing.assert_close(loss, 2 * scores["itc"].loss)


def test_hard_negatives_are_drawn_by_the_logits() -> None:
    """Oracle: piece 1 names the pair that a text was written for. A picture for which one text of
    another has nearly all of the softmax gets that one; its masks come along and its words are not
    learned; matched pairs keep theirs."""
    batch = random_batch(5, pictures=4, captions=1)
    batch.matched[:] = batch.is_true[:] = True
    batch.tokens[:, 1] = 100 + torch.arange(4)
    itm = Itm(ItmConfig(mismatch=0.6, negatives="itc"))
    itm.mask(batch, toy_tokenizer(), np.random.default_rng(1))
    assert 0 < batch.matched.sum() < 4
    masked = replace(batch)
    Mlm(MlmConfig(probability=1.0, matched_only=False)).mask(
        masked, toy_tokenizer(), np.random.default_rng(1)
    )
    assert torch.equal((masked.mlm_labels != -100).any(dim=1), batch.matched)
    assert batch.tokens[:, 1].tolist() == [100, 101, 102, 103]
    batch.contrast = torch.zeros(4, 4)
    for picture in range(4):
        batch.contrast[picture, picture] = 99.0
        batch.contrast[(picture + 1) % 4, picture] = 30.0
    phrases = batch.phrases.clone()
    itm.mask_cells(cast(Cells, None), batch)
    for pair in range(4):
        source = pair if batch.matched[pair] else (pair + 1) % 4
        assert batch.tokens[pair, 1] == 100 + source
        assert torch.equal(batch.phrases[pair], phrases[source])
