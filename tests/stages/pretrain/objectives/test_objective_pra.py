"""Phrase-region alignment: q, p and their divergence, for both kinds of region."""

from __future__ import annotations

import math
import operator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from pretrain_fixtures import TINY, in_double, random_batch, tiny_student, toy_tokenizer

from stages.pretrain.config import PretrainConfig
from stages.pretrain.data.batch import Batch
from stages.pretrain.model import PretrainModel, make_objectives
from stages.pretrain.objectives.config import ItmConfig, MlmConfig, OmvmConfig, PraConfig
from stages.pretrain.objectives.pra import Pra, divergence
from stages.student.heads import AlignHead, weighted_mean
from stages.student.network import Student
from stages.student.outputs import Cells, Hidden
from stages.training.monitoring.metrics import ObjectiveOutput

REGIONS = ["object", "cell"]
WAYS = [("object", "forward"), ("object", "reverse"), ("cell", "forward")]
TEMPERATURE = 0.05


def _seen(batch: Batch, outside: int = 0) -> Cells:
    """Cells of which the last `outside` of every picture are padding."""
    num_cells = batch.regions.shape[-1]
    inside = torch.arange(num_cells).expand(len(batch.keys), -1) < num_cells - outside
    empty = torch.zeros(len(batch.keys), num_cells, 1)
    return Cells(features=empty, inside=inside, rows=1, columns=num_cells)


def _score(
    region: str,
    batch: Batch,
    hidden: Hidden,
    student: Student,
    seen: Cells,
    direction: Any = "forward",
) -> ObjectiveOutput:
    config = PraConfig(
        region=region,
        target_temperature=TEMPERATURE,
        divergence=direction,
        min_similarity=None,
    )
    return Pra(config).score(student, seen, hidden, batch)


def _weigh_anew(batch: Batch) -> None:
    """Cells of unlike weight, none among the last three."""
    weights = batch.regions * (0.1 + torch.rand(batch.regions.shape))
    weights[..., -3:] = 0
    weights[..., 0] += (batch.label >= 0) & ~weights.any(dim=-1)
    batch.regions = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-9)


def _noise(batch: Batch) -> Hidden:
    return Hidden(
        text=torch.randn(*batch.tokens.shape, 32, requires_grad=True),
        cells=torch.randn(*batch.masked_cells.shape, 32, requires_grad=True),
    )


@pytest.mark.parametrize("region", REGIONS)
def test_q_and_p_by_hand(region: str) -> None:
    """Oracle: arithmetic. The phrase's pieces (2, 2) and (2, -2) have the mean (2, 0). Similarities
    ln 3 and 0 over temperature 1 make q = (3/4, 1/4).

    object: v = (1, 0) (mean of (2, 1) and (0, -1)) and (0, 5): cosines 1 and 0, over 0.5: 2 and 0.
    cell: q = (3/8, 3/8, 1/4, 0), the fourth cell being of no object; the fifth is padding.
    """
    student = SimpleNamespace(align_head=AlignHead(0.5), pool_phrases=weighted_mean)
    batch = random_batch(0, pictures=1, captions=1)
    batch.matched[:], batch.label = True, torch.tensor([[4, 2, -1]])
    batch.phrases = torch.tensor([[[False, True, True]]])
    batch.similarity = torch.tensor([[[math.log(3), 0.0, 9.0]]])
    batch.regions = torch.tensor([[[0.5, 0.5, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]])
    hidden = Hidden(
        text=torch.tensor([[[9.0, 9.0], [2.0, 2.0], [2.0, -2.0]]]),
        cells=torch.tensor([[[2.0, 1.0], [0.0, -1.0], [0.0, 5.0], [-3.0, 0.0], [8.0, 0.0]]]),
    )
    pra = Pra(PraConfig(region=region, target_temperature=1.0))
    scored = pra.score(cast(Student, student), _seen(batch, 1), hidden, batch)
    q, logits = {
        "object": ([3 / 4, 1 / 4], [2.0, 0.0]),
        "cell": ([3 / 8, 3 / 8, 1 / 4, 0.0], [4 / math.sqrt(5), 0.0, 0.0, -2.0]),
    }[region]
    norm = math.log(sum(math.exp(v) for v in logits))
    expected = sum(a * (math.log(a) - (v - norm)) for a, v in zip(q, logits) if a)
    assert scored.loss.item() == pytest.approx(expected, rel=1e-5)
    assert [float(v) for v in scored.metrics["accuracy"]] == [1.0, 1.0]


def _slow(region: str, batch: Batch, hidden: Hidden, seen: Cells, reverse: bool) -> torch.Tensor:
    losses = []
    for b, n in enumerate(batch.picture.tolist()):
        objects = [o for o, label in enumerate(batch.label[n].tolist()) if label >= 0]
        own = {o: batch.regions[n, o].nonzero()[:, 0].tolist() for o in objects}
        weight = batch.regions[n].tolist()
        for p in range(batch.phrases.shape[1]):
            pieces = batch.phrases[b, p].nonzero()[:, 0].tolist()
            if not pieces or not objects or not batch.matched[b]:
                continue
            t = torch.stack([hidden.text[b, i] for i in pieces]).sum(dim=0) / len(pieces)
            raw = [math.exp(float(batch.similarity[b, p, o]) / TEMPERATURE) for o in objects]
            q_object = {o: value / sum(raw) for o, value in zip(objects, raw)}
            if region == "object":
                q = list(q_object.values())
                vectors = [
                    torch.stack([weight[o][c] * hidden.cells[b, c] for c in own[o]]).sum(dim=0)
                    for o in objects
                ]
            else:
                real = seen.inside[n].nonzero()[:, 0].tolist()
                q = [sum(q_object[o] * weight[o][c] for o in objects) for c in real]
                vectors = [hidden.cells[b, c] for c in real]
            cosines = [(t @ v) / torch.sqrt((t @ t) * (v @ v)) for v in vectors]
            p_all = torch.softmax(torch.stack(cosines) / 0.1, dim=0)
            p_of = [torch.log(p) for p in p_all]
            if reverse:
                losses.append(sum(p_all[i] * (p_of[i] - math.log(a)) for i, a in enumerate(q)))
            else:
                losses.append(sum(a * (math.log(a) - p_of[i]) for i, a in enumerate(q) if a > 0))
    return torch.stack([torch.as_tensor(loss) for loss in losses]).mean()


@pytest.mark.parametrize("region, direction", WAYS)
def test_loss_and_gradient_are_those_of_a_loop(region: str, direction: str) -> None:
    """Oracle: loops over phrases, objects and cells in plain Python, on batches with mismatched
    texts, pictures without objects, captions without phrases, cells of unlike weight and padding of
    each kind."""
    student = tiny_student()
    for seed in range(3):
        batch = random_batch(seed, pictures=4)
        _weigh_anew(batch)
        seen, hidden = _seen(batch, 3), _noise(batch)
        assert not batch.phrases.any(dim=-1).any(dim=-1).all() and (batch.label[0] < 0).all()
        fast = _score(region, batch, hidden, student, seen, direction).loss
        slow = _slow(region, batch, hidden, seen, direction == "reverse")
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
        wanted = [hidden.text, hidden.cells]
        for got, expected in zip(
            torch.autograd.grad(fast, wanted), torch.autograd.grad(slow, wanted)
        ):
            assert expected.abs().sum() > 0 and got.isfinite().all()
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("region, direction", WAYS)
def test_gradients_are_those_of_finite_differences(region: str, direction: str) -> None:
    """Oracle: torch.autograd.gradcheck in float64, by text and by cells; the picture without
    objects and the mismatched texts get zeros."""
    student, batch = tiny_student().double(), random_batch(9, pictures=3, captions=1, grid=(2, 3))
    batch = in_double(batch)
    batch.matched = torch.tensor([True, True, False])
    batch.phrases[:, 0, 1] = True
    _weigh_anew(batch)
    noise = _noise(batch)
    text, cells = (part.detach()[..., :8].double() for part in (noise.text, noise.cells))

    def loss(text: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        hidden = Hidden(text=text, cells=cells)
        return _score(region, batch, hidden, student, _seen(batch, 3), direction).loss

    assert loss(text, cells) > 0
    assert torch.autograd.gradcheck(loss, (text.requires_grad_(), cells.requires_grad_()))


def test_divergence_of_distributions_by_hand() -> None:
    """Oracle: (1/2, 1/2) to (1/4, 3/4): ln 2 / 2 + ln (2/3) / 2; the other way it is another.
    Where the first is 0 the second may be; a 0 in the second alone is infinite."""
    a, b = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    forth, back = divergence(a, b).item(), divergence(b, a).item()
    assert forth == pytest.approx(math.log(2) / 2 + math.log(2 / 3) / 2, rel=1e-6)
    assert back == pytest.approx(math.log(0.5) / 4 + 3 * math.log(1.5) / 4, rel=1e-6)
    one, none = torch.tensor([[1.0, 0.0]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert divergence(one, one).item() == 0
    assert divergence(one, none).item() == pytest.approx(math.log(2), rel=1e-6)
    assert divergence(none, one).item() == math.inf


@pytest.mark.parametrize("region", REGIONS)
def test_an_object_without_a_cell_counts_as_padding(region: str) -> None:
    """Oracle: the loss with that row as padding."""
    student, batch = tiny_student(), random_batch(7, pictures=4)
    batch.matched[:], batch.regions[:, 1] = True, 0
    hidden = _noise(batch)
    got = _score(region, batch, hidden, student, _seen(batch)).loss
    batch.label[:, 1] = -1
    assert got.item() > 0
    assert _score(region, batch, hidden, student, _seen(batch)).loss.item() == got.item()


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"region": "object", "matched_only": False}, "a mismatched text has no target"),
        ({"region": "cell", "divergence": "reverse"}, "pra.divergence: got reverse"),
        ({"region": "box"}, "pra.region: got 'box'"),
    ],
)
def test_settings_that_cannot_be(fields: dict, words: str) -> None:
    """Oracle: ValueError that says why."""
    with pytest.raises(ValueError, match=words):
        PraConfig(**fields)


@pytest.mark.parametrize("region", REGIONS)
def test_order_and_padding_do_not_matter(region: str) -> None:
    """Oracle: the loss of the same objects in another order, with padding objects and padding
    phrases after them; similarities of the padding are wild on purpose."""
    student, batch = tiny_student(), random_batch(3, pictures=4)
    hidden = _noise(batch)
    expected = _score(region, batch, hidden, student, _seen(batch))
    order = torch.tensor([3, 1, 0, 2])
    for name in ("regions", "label"):
        value = getattr(batch, name)[:, order]
        setattr(batch, name, torch.cat([value, torch.full_like(value[:, :2], -1)], dim=1))
    batch.regions[:, 4:] = 0
    wild = torch.full((len(batch.tokens), 3, 2), 1e4)
    similarity = torch.cat([batch.similarity[..., order], wild], dim=2)
    batch.similarity = torch.cat([similarity, torch.full_like(similarity[:, :1], 1e4)], dim=1)
    batch.phrases = torch.cat([batch.phrases, torch.zeros_like(batch.phrases[:, :1])], dim=1)
    got = _score(region, batch, hidden, student, _seen(batch))
    torch.testing.assert_close(got.loss, expected.loss)
    assert float(got.metrics["accuracy"][1]) == float(expected.metrics["accuracy"][1])


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("missing", ["phrases", "objects", "matched"])
def test_nothing_to_align_costs_nothing_and_keeps_the_graph(region: str, missing: str) -> None:
    """Oracle: the loss is 0 and finite zeros come back, whatever is missing."""
    student, batch = tiny_student(), random_batch(4)
    if missing == "phrases":
        batch.phrases[:] = False
    elif missing == "objects":
        batch.label[:], batch.regions[:] = -1, 0
    else:
        batch.matched[:] = False
    hidden = _noise(batch)
    scored = _score(region, batch, hidden, student, _seen(batch))
    scored.loss.backward()
    assert scored.loss.item() == 0
    for part in (hidden.text, hidden.cells):
        assert part.grad is not None and not part.grad.any()


def test_nothing_is_hidden() -> None:
    """Oracle: the batch after masking is the batch before."""
    batch, before = random_batch(5), random_batch(5)
    Pra(PraConfig()).mask(batch, toy_tokenizer(), np.random.default_rng(0))
    for name, value in vars(before).items():
        same = torch.equal if isinstance(value, torch.Tensor) else operator.eq
        assert same(getattr(batch, name), value), name


def test_before_the_fusion_phrases_meet_cells_of_the_cnn() -> None:
    """Oracle: the objective itself, given the captions read alone and the CNN's own cells; masks
    and other captions that ITM and MLM put in change nothing. No other objective needs the fusion,
    so its outputs are not made, and grounding looks at the same two."""
    student = tiny_student(replace(TINY, pra_level="encoders"))
    batch = random_batch(4, pictures=4, grid=(2, 2))
    batch.pixels = torch.randn_like(batch.pixels)
    batch.tokens = torch.full_like(batch.tokens, 4)
    off = {"weight": 0.0}
    config = replace(
        PretrainConfig(), mlm=MlmConfig(**off), itm=ItmConfig(**off), omvm=OmvmConfig(**off)
    )
    loss, scores = PretrainModel(student, make_objectives(config))(batch)
    seen = student.encode_image(batch.pixels, batch.sizes_px)
    alone = Hidden(text=student.encode_texts(batch.texts), cells=seen.features[batch.picture])
    wanted = Pra(config.pra).score(student, seen, alone, batch).loss
    assert wanted > 0
    torch.testing.assert_close(loss, wanted)
    aligned = student.align(seen, picture=batch.picture, input_ids=batch.texts)
    torch.testing.assert_close(aligned.text, alone.text)
    torch.testing.assert_close(aligned.cells, alone.cells)


@pytest.mark.parametrize("region", REGIONS)
def test_a_phrase_that_no_object_is_near_is_left_out(region: str) -> None:
    """Oracle: the loss is that of the batch without those phrases; padding's similarity does not
    save one."""
    student, batch = tiny_student(), random_batch(7, pictures=4)
    batch.similarity = batch.similarity + 0.5
    batch.similarity[:, 0] = torch.where(batch.is_object[batch.picture], 0.29, 9.0)
    hidden, seen = _noise(batch), _seen(batch)
    config = PraConfig(region=region, min_similarity=0.3)
    got = Pra(config).score(student, seen, hidden, batch).loss
    fewer = replace(batch, phrases=batch.phrases.clone())
    fewer.phrases[:, 0] = False
    every = replace(config, min_similarity=None)
    torch.testing.assert_close(got, Pra(every).score(student, seen, hidden, fewer).loss)
    assert got != Pra(every).score(student, seen, hidden, batch).loss


def test_the_teachers_scores_weigh_the_target() -> None:
    """Oracle: arithmetic. Equal similarities and scores 0.9 and 0.3 make q = (3/4, 1/4); the
    student finds both regions as similar, p = (1/2, 1/2)."""
    student = SimpleNamespace(align_head=AlignHead(0.5), pool_phrases=weighted_mean)
    batch = random_batch(0, pictures=1, captions=1)
    batch.matched[:], batch.label = True, torch.tensor([[4, 2]])
    batch.score = torch.tensor([[0.9, 0.3]])
    batch.phrases = torch.tensor([[[True]]])
    batch.similarity = torch.tensor([[[1.0, 1.0]]])
    batch.regions = torch.eye(2)[None]
    hidden = Hidden(text=torch.ones(1, 1, 2), cells=torch.ones(1, 2, 2))
    pra = Pra(PraConfig(region="object", score_weight=True))
    loss = pra.score(cast(Student, student), _seen(batch), hidden, batch).loss
    wanted = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
