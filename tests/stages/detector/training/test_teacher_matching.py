"""Which candidates answer for which objects, and the losses that follow."""

from __future__ import annotations

import math

import pytest
import torch
from teacher_scenes import NET, TEACH, draw, random_model, replace_in

from stages.detector.model.rpn import Proposals
from stages.detector.ops.boxes import iou
from stages.detector.ops.resize import stack
from stages.detector.training.labeled_pictures import NO_ATTRIBUTE, Truth
from stages.detector.training.losses import Regions, _pick_regions, detection_losses
from stages.detector.training.matching import BACKGROUND, NEITHER, OBJECT, match, sample
from stages.detector.training.training_set import Batch

NOTHING = Truth(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0).long())
LOSSES = ("objectness", "anchor_box", "label", "box", "attribute")


def random_numbers(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(truths: list[Truth]) -> Batch:
    pictures = [torch.from_numpy(draw(seed)[0]) for seed in range(len(truths))]
    return Batch(
        [f"p{i}" for i in range(len(truths))],
        stack(pictures, NET.picture, torch.device("cpu")),
        [(48, 48)] * len(truths),
        truths,
        num_of_step=len(truths),
    )


def test_verdicts_by_hand() -> None:
    """Oracle: thresholds 0.3 and 0.7 applied by hand, bounds included; then the best anchors of
    each object on top, both of a tie, but none for an object that meets no anchor."""
    overlap = torch.tensor(
        [[0.7, 0.1, 0], [0.69, 0.3, 0], [0.29, 0.2, 0], [0.1, 0.4, 0], [0.0, 0.4, 0], [0.0, 0.0, 0]]
    )
    nearest, verdict = match(overlap, low=0.3, high=0.7, best_always=False)
    assert nearest.tolist()[:5] == [0, 0, 0, 1, 1]
    assert verdict.tolist() == [OBJECT, NEITHER, BACKGROUND, NEITHER, NEITHER, BACKGROUND]
    _, verdict = match(overlap, low=0.3, high=0.7, best_always=True)
    assert verdict.tolist() == [OBJECT, NEITHER, BACKGROUND, OBJECT, OBJECT, BACKGROUND]


def test_a_picture_without_objects_is_all_ground() -> None:
    """Oracle: there is nothing to be near to."""
    nearest, verdict = match(torch.zeros(4, 0), low=0.3, high=0.7, best_always=True)
    assert verdict.tolist() == [BACKGROUND] * 4 and nearest.tolist() == [0] * 4


@pytest.mark.parametrize(
    "objects, ground, expected",
    [(50, 50, (8, 8)), (3, 50, (3, 13)), (50, 2, (8, 2)), (0, 0, (0, 0))],
)
def test_samples_hold_the_shares(objects: int, ground: int, expected: tuple[int, int]) -> None:
    """Oracle: counts by hand for 16 at a share of one half; nobody twice, undecided never, the
    same for the same random numbers and another choice for others."""
    verdict = torch.tensor([OBJECT] * objects + [BACKGROUND] * ground + [NEITHER] * 20)
    chosen = sample(verdict, num=16, share=0.5, random=random_numbers())
    assert (verdict[chosen] == OBJECT).sum() == expected[0]
    assert (verdict[chosen] == BACKGROUND).sum() == expected[1]
    assert len(set(chosen.tolist())) == len(chosen) == sum(expected)
    assert torch.equal(chosen, sample(verdict, num=16, share=0.5, random=random_numbers()))
    if objects == ground == 50:
        other = sample(verdict, num=16, share=0.5, random=random_numbers(1))
        assert not torch.equal(chosen, other)


def test_regions_take_class_box_and_attribute_of_their_object() -> None:
    """Oracle: two far objects and proposals on the first, between, and nowhere, by hand; the true
    boxes themselves are among the regions."""
    truth = Truth(
        torch.tensor([[0.0, 0, 10, 10], [30, 30, 40, 40]]),
        torch.tensor([1, 0]),
        torch.tensor([0, NO_ATTRIBUTE]),
    )
    proposals = Proposals(
        torch.tensor([[0.0, 0, 10, 9], [30, 30, 40, 34.5], [20, 0, 28, 8]]), torch.zeros(3)
    )
    regions: Regions = _pick_regions(proposals, truth, 2, TEACH, random_numbers())
    reported = {
        tuple(box): (label, attribute)
        for box, label, attribute in zip(
            regions.boxes.tolist(), regions.labels.tolist(), regions.attributes.tolist()
        )
    }
    assert reported == {
        (0, 0, 10, 9): (1, 0),
        (0, 0, 10, 10): (1, 0),
        (30, 30, 40, 40): (0, NO_ATTRIBUTE),
        (30, 30, 40, 34.5): (2, NO_ATTRIBUTE),
        (20, 0, 28, 8): (2, NO_ATTRIBUTE),
    }
    is_object = regions.labels < 2
    best = iou(regions.boxes[is_object], regions.targets[is_object]).diagonal()
    assert (best >= TEACH.proposal_iou).all()


def test_losses_of_a_net_that_knows_nothing() -> None:
    """Oracle: uniform predictions cost the logarithm of the number of choices."""
    model = random_model()
    silent = (
        "box_predictor.cls_score",
        "proposal_network.objectness_logits",
        "attribute_predictor.attr_score",
    )
    for name, parameter in model.named_parameters():
        if name.startswith(silent):
            torch.nn.init.zeros_(parameter)
    truth = Truth(torch.tensor([[4.0, 4, 24, 12]]), torch.tensor([0]), torch.tensor([1]))
    losses = detection_losses(model, batch_of([truth, truth]), TEACH, [random_numbers()] * 2)
    assert losses["objectness"].item() == pytest.approx(math.log(2), rel=1e-5)
    assert losses["label"].item() == pytest.approx(math.log(3), rel=1e-5)
    assert losses["attribute"].item() == pytest.approx(math.log(2), rel=1e-5)


@pytest.mark.parametrize("box_head", ["fc", "conv"])
def test_every_loss_reaches_its_weights(box_head: str) -> None:
    """Oracle: after one backward pass every parameter has a finite gradient, and no
    weight's is all zeros."""
    model = random_model(net=replace_in(NET, "boxes", head=box_head)).train()
    truths = [
        Truth(
            torch.tensor(draw(seed)[1]["boxes"]),
            torch.tensor([0, 1]),
            torch.tensor([1, NO_ATTRIBUTE]),
        )
        for seed in range(3)
    ]
    losses = detection_losses(model, batch_of(truths), TEACH, [random_numbers()] * 3)
    assert tuple(losses) == LOSSES
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.ndim == 1 or parameter.grad.any(), name


def test_a_batch_without_any_object_trains_on() -> None:
    """Oracle: box and attribute losses of 0, the others finite, with gradients."""
    model = random_model().train()
    losses = detection_losses(model, batch_of([NOTHING, NOTHING]), TEACH, [random_numbers()] * 2)
    assert [losses[name].item() for name in ("anchor_box", "box", "attribute")] == [0, 0, 0]
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert total.isfinite() and losses["label"] > 0
