"""A teacher at work: the objects it reports, whatever else is in the batch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from teacher_scenes import ATTRIBUTES, LABELS, NET, draw, look, random_model, replace_in

from sharding.format.schema import check_objects, object_dtype
from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.model.rpn import AnchorScores, ProposalNetwork, Proposals
from stages.detector.ops.resize import resize, resized_size, stack
from stages.detector.predictor import Teacher

SIZES = [(48, 48), (48, 96), (100, 60), (48, 48), (30, 31), (96, 48), (24, 400), (48, 48)]


def teacher_of(model: FasterRCNN, attributes: list[str] = ATTRIBUTES) -> Teacher:
    return Teacher(model, label_names=LABELS, attribute_names=attributes, fingerprint="test")


def pictures_of(sizes: list[tuple[int, int]]) -> list[torch.Tensor]:
    random = np.random.default_rng(0)
    pictures = []
    for seed, (height, width) in enumerate(sizes):
        if min(height, width) >= 48:
            pictures.append(torch.from_numpy(draw(seed, height=height, width=width)[0]))
        else:
            noise = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            pictures.append(torch.from_numpy(noise))
    return pictures


def test_rows_are_what_the_schema_says() -> None:
    """Oracle: sharding's own check, and the docstring of detect.py: boxes inside the picture in
    its own pixels, soft labels falling and no more than 1 in all, features of half precision."""
    teacher = teacher_of(random_model())
    for picture, array in zip(pictures_of(SIZES), look(teacher, pictures_of(SIZES))):
        check_objects(array)
        assert array.dtype == object_dtype(feature_size=32, num_top=2, attributes=True)
        height, width = picture.shape[:2]
        assert (array["box"] >= 0).all() and (array["box"] <= [width, height] * 2).all()
        assert array["box"].max() > 0.5 * max(height, width), "in pixels of the given picture"
        assert (np.diff(array["top_score"].astype(float)) <= 0).all()
        assert (array["top_score"].sum(1) <= 1.001).all()
        assert ((array["label"] >= 0) & (array["label"] < 2)).all()
        assert ((array["attribute_score"] >= 0.499) & (array["attribute_score"] <= 1)).all()
    assert teacher.detect([]) == []


def test_a_row_reports_the_proposal_it_came_from() -> None:
    """Oracle: the net's own parts called one after the other on one picture: a row's soft label,
    feature and attribute are found together at one proposal, where its score is its class's."""
    model = random_model()
    picture = pictures_of([(48, 96)])[0]
    array = look(teacher_of(model), [picture])[0]
    batch = stack([picture], NET.picture, torch.device("cpu"))
    with torch.no_grad():
        levels = model.backbone(batch)
        proposals = model.proposal_network.propose(model.proposal_network(levels), [(48, 96)])
        features = model.features(levels, [proposals[0].boxes])
        logits, _ = model.box_predictor(features)
        assert model.attribute_predictor is not None
        attributes = model.attribute_predictor(features, logits.argmax(1)).softmax(1)
    probabilities = logits.softmax(1)[:, :-1]
    for row in array:
        source = int((features.half() - torch.from_numpy(row["feature"])).abs().sum(1).argmin())
        np.testing.assert_allclose(features[source], row["feature"], rtol=1e-3, atol=1e-3)
        expected, order = probabilities[source].sort(descending=True)
        assert row["top_label"].tolist() == order.tolist()
        np.testing.assert_allclose(row["top_score"], expected, rtol=1e-3)
        np.testing.assert_allclose(row["score"], probabilities[source, row["label"]], rtol=1e-3)
        np.testing.assert_allclose(row["attribute_score"], attributes[source].max(), rtol=1e-3)
        assert row["attribute"] == attributes[source].argmax()


def test_a_null_teacher_gives_empty_arrays() -> None:
    """Oracle: a threshold that no probability passes; and a net without attributes has no such
    fields."""
    net = replace_in(NET, "choice", score_threshold=1.0)
    model = FasterRCNN(net, num_labels=2, num_attributes=0)
    array = look(teacher_of(model, attributes=[]), pictures_of([(48, 48)]))[0]
    assert len(array) == 0 and "attribute" not in (array.dtype.names or ())
    check_objects(array)


@pytest.mark.parametrize(
    ("part", "rule"),
    [
        ("proposal_network.objectness_logits", "detections"),
        ("proposal_network.anchor_deltas", "proposals"),
        ("box_predictor.cls_score", "detections"),
        ("box_predictor.cls_score", "proposals"),
        ("box_predictor.bbox_pred", "detections"),
    ],
)
def test_boxes_or_scores_that_are_not_finite_are_an_error(part: str, rule: str) -> None:
    """As of a net that overflows on a picture: comparisons with NaN are false, so it would pass for
    one without objects. Oracle: the layer's outputs are NaN, and the error says so."""
    model = random_model(net=replace_in(NET, "choice", rule=rule))
    teacher = teacher_of(model)
    prepared = teacher.prepare(pictures_of([(48, 96)])[0])
    assert len(teacher.detect([prepared])[0]) > 0
    layer = model.get_submodule(part)
    assert isinstance(layer.bias, torch.Tensor)
    with torch.no_grad():
        layer.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        teacher.detect([prepared])


@pytest.mark.parametrize("box_head", ["fc", "conv"])
def test_a_picture_without_proposals_gives_an_empty_array(
    box_head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: an empty array for it, and for its neighbour what it gives alone."""
    model = random_model(net=replace_in(NET, "boxes", head=box_head))
    teacher = teacher_of(model).with_settings(precision="bf16")  # which runs the two together
    first, second = map(teacher.prepare, pictures_of([(48, 48), (48, 48)]))
    expected = teacher.detect([second])[0]
    propose = ProposalNetwork.propose

    def blind(
        self: ProposalNetwork,
        scores: list[AnchorScores],
        sizes: list[tuple[int, int]],
        scales: list[tuple[float, float]] | None,
    ) -> list[Proposals]:
        proposals = propose(self, scores, sizes, scales)
        return [Proposals(*(part[:0] for part in proposals[0])), *proposals[1:]]

    monkeypatch.setattr(ProposalNetwork, "propose", blind)
    nothing, got = teacher.detect([first, second])
    assert len(nothing) == 0 and got["label"].tolist() == expected["label"].tolist()
    assert len(teacher.detect([first])[0]) == 0


@pytest.mark.parametrize(
    "picture",
    [
        torch.zeros(48, 48, 3),
        torch.zeros(3, 48, 48, dtype=torch.uint8),
        torch.zeros(48, 48, dtype=torch.uint8),
        torch.zeros(0, 5, 3, dtype=torch.uint8),
    ],
)
def test_what_is_no_picture_is_refused(picture: torch.Tensor) -> None:
    """Oracle: the message tells what was got."""
    with pytest.raises(ValueError, match="picture: got torch"):
        teacher_of(random_model()).prepare(picture)


def test_resized_sizes() -> None:
    """Oracle: detectron2's ResizeShortestEdge by hand for 800 and at most 1333: rounding, the
    longer side's limit, and a sliver that keeps one pixel."""
    net = dataclasses.replace(NET.picture, shorter_px=800, longer_px=1333)
    expected = {
        (480, 640): (800, 1067),
        (640, 480): (1067, 800),
        (800, 800): (800, 800),
        (400, 1000): (533, 1333),
        (1000, 300): (1333, 400),
        (1, 9000): (1, 1333),
    }
    assert {size: resized_size(size, net) for size in expected} == expected
    picture = pictures_of([(48, 96)])[0]
    assert resize(picture, (48, 96)) is picture
    assert resize(picture, (24, 60)).shape == (24, 60, 3)


def test_padding_stands_right_and_below_after_normalisation() -> None:
    """Oracle: zeros where there is no picture, (value - mean) / std where there is."""
    net = dataclasses.replace(NET.picture, pixel_mean=(10.0, 20.0, 30.0), pixel_std=(2.0, 4.0, 5.0))
    small = torch.full((4, 3, 3), 50, dtype=torch.uint8)
    batch = stack([small, torch.zeros(6, 5, 3, dtype=torch.uint8)], net, torch.device("cpu"))
    assert batch.shape == (2, 3, 6, 5)
    assert batch[0, :, :4, :3].flatten(1).unique(dim=1).flatten().tolist() == [20, 7.5, 4]
    assert not batch[0, :, 4:].any() and not batch[0, :, :, 3:].any()


def test_proposals_of_several_levels_are_ranked_together() -> None:
    """Oracle: by hand; equal boxes suppress each other within a level but not across levels, and
    the best of all levels come first, within the picture that is not padding."""
    network = ProposalNetwork(
        4, dataclasses.replace(NET.proposals, num_proposals=3), inclusive=False
    )
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 60, 60], [50, 0, 60, 9]])
    levels = [
        AnchorScores(torch.tensor([logits]), torch.zeros(1, 4, 4), anchors)
        for logits in ([3.0, 2.5, -1, 9], [2.0, 1.5, 4, 9])
    ]
    proposals = network.propose(levels, [(40, 40)])[0]
    assert proposals.logits.tolist() == [4, 3, 2]
    assert proposals.boxes.tolist() == [[20, 20, 40, 40], [0, 0, 10, 10], [0, 0, 10, 10]]


def test_bounds_replace_those_of_a_teacher_that_chooses_among_proposals() -> None:
    """Oracle: counts; the teacher that was asked keeps its own, with the same weights, and one that
    reports detections is not touched."""
    pictures = pictures_of([(48, 96), (100, 60)])
    model = random_model(
        net=replace_in(
            NET, "choice", rule="proposals", score_threshold=0.0, min_objects=1, max_objects=9
        )
    )
    teacher = teacher_of(model)
    before = look(teacher, pictures)
    fixed = teacher.with_settings(precision="fp32", min_objects=4, max_objects=4)
    assert [len(array) for array in look(fixed, pictures)] == [4, 4]
    few = teacher.with_settings(precision="fp32", score_threshold=1.0)
    assert [len(array) for array in look(few, pictures)] == [1, 1]
    for array, again in zip(before, look(teacher, pictures)):
        assert len(array) > 4 and array.tobytes() == again.tobytes()
        check_objects(array)
    weights, shared = teacher.model.parameters(), fixed.model.parameters()
    assert all(one is other for one, other in zip(weights, shared))
    with pytest.raises(ValueError, match="min_objects: got 10"):
        teacher.with_settings(precision="fp32", min_objects=10)
    detections = teacher_of(random_model())
    assert detections.with_settings(precision="fp32", max_objects=1).model is detections.model
