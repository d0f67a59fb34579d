"""Contrast with a momentum copy and a queue, beside a plain implementation of ALBEF's loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pretrain_fixtures import TINY, random_batch, tiny_student
from torch.nn import functional as F

from stages.pretrain.config import PretrainConfig
from stages.pretrain.data.batch import Batch
from stages.pretrain.model import PretrainModel, make_objectives
from stages.pretrain.momentum_contrast import MomentumContrast, picture_ids
from stages.pretrain.objectives.config import ItcConfig
from stages.student.network import Student

WITH_HEAD = replace(TINY, itc_size=6, dropout=0.0)
ALBEF = ItcConfig(weight=1, queue_size=6, momentum=0.9, soft_targets=0.4)


def _model(itc: ItcConfig) -> PretrainModel:
    """The model with itc alone. In training mode, without dropout; BatchNorm as it is."""
    config = PretrainConfig(
        itc=itc,
        itm=replace(PretrainConfig().itm, weight=0),
        mlm=replace(PretrainConfig().mlm, weight=0),
        omvm=replace(PretrainConfig().omvm, weight=0),
        pra=replace(PretrainConfig().pra, weight=0),
    )
    student = tiny_student(WITH_HEAD)
    momentum = MomentumContrast(student, itc) if itc.has_momentum else None
    model = PretrainModel(student, make_objectives(config), momentum=momentum)
    return model.train()


def _batch(seed: int, *, captions: int = 1) -> Batch:
    batch = random_batch(seed, captions=captions, grid=(2, 2))
    batch.pixels = torch.randn(batch.pixels.shape, generator=torch.Generator().manual_seed(seed))
    batch.is_true[:] = True
    batch.keys = [f"{seed}-{n}" for n in range(3)]
    return batch


class Albef:
    """The loss of ALBEF's pretraining, written out for batches of one caption a picture: vectors of
    a deep copy, a queue as a list, targets by loops."""

    def __init__(self, student: Student) -> None:
        self.copy = tiny_student(WITH_HEAD).train()
        self.copy.load_state_dict(student.state_dict())
        self.queue: list[tuple[torch.Tensor, torch.Tensor, str]] = []

    def loss(self, student: Student, batch: Batch) -> torch.Tensor:
        """And put the batch's vectors into the queue."""
        texts, pictures = _vectors(student, batch)
        with torch.no_grad():
            copies = _vectors(self.copy, batch)
        rows = list(zip(*copies, batch.keys))
        everything = rows + self.queue
        temperature = student.contrastive_head.log_temperature.exp()
        losses = []
        for own, copied, other in ((texts, copies[0], 1), (pictures, copies[1], 0)):
            columns = torch.stack([entry[other] for entry in everything])
            for n, key in enumerate(batch.keys):
                hard = torch.tensor([float(entry[2] == key) for entry in everything])
                soft = F.softmax(columns @ copied[n] / temperature.detach(), dim=0)
                target = 0.4 * soft + 0.6 * hard / hard.sum()
                losses.append(-(target * F.log_softmax(columns @ own[n] / temperature, 0)).sum())
        self.queue = (self.queue + rows)[-6:]
        return torch.stack(losses).mean()

    def follow(self, student: Student) -> None:
        """param_m = m param_m + (1 - m) param."""
        with torch.no_grad():
            for copied, own in zip(self.copy.parameters(), student.parameters()):
                copied.copy_(0.9 * copied + 0.1 * own)


def _vectors(student: Student, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    cells = student.encode_image(batch.pixels, batch.sizes_px)
    return student.embed_texts(batch.texts), student.embed_pictures(cells)


def test_losses_and_gradients_are_albefs() -> None:
    """Oracle: `Albef` over five steps, in which the queue fills and turns over and one batch comes
    again, whose earlier vectors are then its own too; the weights move in between."""
    model = _model(ALBEF)
    albef = Albef(model.student)
    for step, seed in enumerate((0, 1, 2, 1, 3)):
        batch = _batch(seed)
        wanted = albef.loss(model.student, batch)
        loss, scores = model(batch)
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
        weight = model.student.grid.project.weight
        gradients = [torch.autograd.grad(one, weight)[0] for one in (loss, wanted)]
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)
        with torch.no_grad():
            for parameter in model.student.parameters():
                parameter += 0.02 * torch.randn(parameter.shape)
        model.end_step()
        albef.follow(model.student)
        count = model.momentum.get_buffer("text_count")
        assert int(count) == 3 * (step + 1)


def test_a_copy_that_never_moved_compares_as_the_batch_does() -> None:
    """Oracle: the loss without a copy, at the first step, where the queue is empty and the copy is
    the student; several captions a picture, some false."""
    batch = _batch(4, captions=2)
    batch.is_true[[0, 1, 4]] = False
    plain, _ = _model(ItcConfig(weight=1))(replace(batch))
    copied, _ = _model(replace(ALBEF, soft_targets=0.0))(replace(batch))
    torch.testing.assert_close(copied, plain)


def test_soft_targets_rise_from_nothing() -> None:
    """Oracle: the share of each step, by hand; without a queue nothing is kept."""
    itc = ItcConfig(weight=1, soft_targets=0.4, soft_targets_steps=4)
    model, shares = _model(itc), []
    for step in range(6):
        batch = _batch(step)
        model(batch)
        assert batch.comparisons is not None
        shares.append(batch.comparisons[0].soft_share)
        assert batch.comparisons[0].logits.shape == (3, 3)
        model.end_step()
    assert shares == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.4])


def test_the_rows_that_came_last_stay() -> None:
    """Oracle: a queue of 5 after batches of 3 pictures, by their keys; what is no valid batch, and
    what is validated, enters none."""
    model = _model(replace(ALBEF, queue_size=5))
    for seed in range(3):
        model(_batch(seed))
        model(_batch(9), is_valid=False)
        model.end_step()
    with torch.no_grad():
        model.eval()(_batch(8))
    model.end_step()
    ids = model.momentum.get_buffer("picture_ids")
    wanted = picture_ids(["1-1", "1-2", "2-0", "2-1", "2-2"])
    assert sorted(ids.tolist()) == sorted(wanted.tolist())


def test_the_student_itself_notes_no_second_pass() -> None:
    """Oracle: BatchNorm's running statistics and counts after the same batch without a copy."""
    students = []
    for itc in (ItcConfig(weight=1), ALBEF):
        model = _model(itc)
        model(_batch(5))
        students.append(dict(model.student.named_buffers()))
    for name, buffer in students[0].items():
        torch.testing.assert_close(students[1][name], buffer)


@pytest.mark.parametrize("other", [{"precision": "bf16"}, {"zero_stage": 3}])
def test_weights_that_are_not_whole_are_refused(other: dict) -> None:
    """Oracle: the field's own words."""
    with pytest.raises(ValueError, match="itc.queue_size: got 6, .* with precision"):
        PretrainConfig(itc=ALBEF, **other)
