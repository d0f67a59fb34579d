"""Objects found in several views of a picture (`stages.detector.model.test_time_augmentation`)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from teacher_scenes import ATTRIBUTES, LABELS, NET, draw

from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.model.postprocess import label_scores
from stages.detector.model.test_time_augmentation import View, find_in_views
from stages.detector.net_config import ChoiceConfig, PictureConfig, ProposalConfig, TeacherConfig
from stages.detector.net_json import net_from_json, net_to_json
from stages.detector.predictor import Teacher

CHOICE = ChoiceConfig(score_threshold=0.2, max_objects=20, num_top=2)


def net(*, class_agnostic: bool = False) -> FasterRCNN:
    """Random weights whose scores differ enough from box to box that none are equal."""
    torch.manual_seed(3)
    boxes = dataclasses.replace(NET.boxes, class_agnostic=class_agnostic)
    config = dataclasses.replace(NET, choice=CHOICE, boxes=boxes)
    model = FasterRCNN(config, num_labels=len(LABELS), num_attributes=len(ATTRIBUTES)).eval()
    for layer in (model.box_predictor.cls_score, model.box_predictor.bbox_pred):
        torch.nn.init.normal_(layer.weight, std=0.3)
    return model


def teacher(model: FasterRCNN, **picture: object) -> Teacher:
    model.config = dataclasses.replace(
        model.config, picture=dataclasses.replace(NET.picture, **picture)
    )
    return Teacher(model, label_names=LABELS, attribute_names=ATTRIBUTES, fingerprint="random")


def objects_in(picture: np.ndarray, **settings: object) -> np.ndarray:
    looker = teacher(net(), **settings)
    (objects,) = looker.detect([looker.prepare(torch.from_numpy(picture.copy()))])
    return objects


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_one_view_finds_what_the_net_finds(class_agnostic: bool) -> None:
    """Oracle: `FasterRCNN.find`, equal in every number."""
    model = net(class_agnostic=class_agnostic)
    picture = torch.randn(1, 3, 48, 64)
    (plain,) = model.find(picture, [(48, 64)])
    viewed = find_in_views(model, [View(picture, (1.0, 1.0))])
    assert len(plain.boxes) > 3
    for ours, theirs in zip(viewed, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_mirrored_picture_gives_mirrored_objects() -> None:
    """Oracle: symmetry. With both views a picture and its mirror image show the net the same two
    pictures, so objects differ by the side they lie on alone; without, they differ by more."""
    picture, _ = draw(1, width=64)
    mirror_image = picture[:, ::-1]
    ours, others = (objects_in(each, inference_mirror=True) for each in (picture, mirror_image))
    assert len(ours) == len(others) > 3
    boxes = others["box"][:, [2, 1, 0, 3]].astype(np.float32)
    boxes[:, [0, 2]] = 64 - boxes[:, [0, 2]]
    np.testing.assert_allclose(ours["box"], boxes, atol=1e-2)
    for name in ("score", "top_score", "attribute_score", "feature"):
        np.testing.assert_allclose(ours[name], others[name], atol=2e-3)
    alone, other_alone = (objects_in(each) for each in (picture, mirror_image))
    num = min(len(alone), len(other_alone))
    assert np.abs(alone["score"][:num] - other_alone["score"][:num]).max() > 1e-3


def test_scores_are_means_over_sizes() -> None:
    """Oracle: the box head asked by hand, at both sizes, of every proposal that either gives; no
    score is another than the mean of its softmax."""
    picture, _ = draw(2)
    looker = teacher(net(), inference_scales=(1.0, 1.5))
    model, prepared = looker.model, looker.prepare(torch.from_numpy(picture))
    assert [each.size for each in prepared.other_sizes] == [(72, 72)]
    views = []
    for sized, factor in ((prepared, 1.0), (prepared.other_sizes[0], 1.5)):
        pixels = (sized.pixels.float() - 127.5) / 64.0
        views.append((pixels.permute(2, 0, 1)[None], factor))
    with torch.no_grad():
        levels = [model.backbone(pixels) for pixels, _ in views]
        proposals = torch.cat(
            [
                model.proposal_network.propose(
                    model.proposal_network(level), [(int(48 * factor), int(48 * factor))]
                )[0].boxes
                / factor
                for level, (_, factor) in zip(levels, views)
            ]
        )
        logits = [
            model.box_predictor(model.features(level, [proposals * factor]))[0]
            for level, (_, factor) in zip(levels, views)
        ]
    mean = torch.stack([each.softmax(1) for each in logits]).mean(0)[:, :-1]
    (objects,) = looker.detect([prepared])
    assert len(objects) > 3
    for row in objects:
        nearest = (mean[:, row["label"]] - float(row["score"])).abs().min()
        assert nearest < 1e-3
    assert objects["score"][0] == pytest.approx(mean.max().item(), abs=1e-3)


def test_objectness_lowers_scores() -> None:
    """Oracle: by hand, sigmoid(0) ** 0.5 and sigmoid(log 3) ** 0.5; power 0 leaves scores alone."""
    probabilities = torch.tensor([[0.5, 0.1], [0.4, 0.2]])
    logits = torch.tensor([0.0, math.log(3.0)])
    scores = label_scores(probabilities, logits, ChoiceConfig(objectness_power=0.5))
    wanted = torch.tensor([[0.5, 0.1], [0.4, 0.2]]) * torch.tensor([[0.5], [0.75]]).sqrt()
    torch.testing.assert_close(scores, wanted)
    assert torch.equal(label_scores(probabilities, logits, ChoiceConfig()), probabilities)


def test_views_and_one_view_know_objectness_alike() -> None:
    """Oracle: the same net through `find`, and its own scores without objectness, all larger."""
    model, picture = net(), torch.randn(1, 3, 48, 64)
    (without,) = model.find(picture, [(48, 64)])
    choice = dataclasses.replace(CHOICE, objectness_power=0.5, score_threshold=0.01)
    model.config = dataclasses.replace(model.config, choice=choice)
    (plain,) = model.find(picture, [(48, 64)])
    viewed = find_in_views(model, [View(picture, (1.0, 1.0))])
    torch.testing.assert_close(viewed.scores, plain.scores)
    assert plain.scores[0] < without.scores[0]


@pytest.mark.parametrize("power", [-0.5, float("nan")])
def test_the_power_is_checked(power: float) -> None:
    """Oracle: the field's own words; so too where the rule has no class score to lower."""
    with pytest.raises(ValueError, match="objectness_power: got"):
        ChoiceConfig(objectness_power=power)
    with pytest.raises(ValueError, match="objectness_power: got"):
        ChoiceConfig(rule="proposals", objectness_power=0.5)


def test_inference_has_proposals_of_its_own() -> None:
    """Oracle: what is left of the same proposals in training, its first five."""
    model = net()
    config = dataclasses.replace(NET.proposals, inference_proposals=5)
    model.proposal_network.config = config
    with torch.no_grad():
        scores = model.proposal_network(model.backbone(torch.randn(1, 3, 48, 64)))
        (seen,) = model.proposal_network.propose(scores, [(48, 64)])
        (trained,) = model.proposal_network.train().propose(scores, [(48, 64)])
    assert len(trained.boxes) > len(seen.boxes) == 5
    assert torch.equal(trained.boxes[:5], seen.boxes)
    with pytest.raises(ValueError, match="inference_proposals: got 0"):
        ProposalConfig(inference_proposals=0)


def test_views_are_part_of_a_teacher_and_older_ones_stay() -> None:
    """Oracle: what was written is read again; a net of one view is written as before the fields
    came, so that its fingerprint stays."""
    viewed = PictureConfig(inference_scales=(1.0, 1.3), inference_mirror=True)
    config = TeacherConfig(
        picture=viewed,
        choice=ChoiceConfig(objectness_power=0.5),
        proposals=ProposalConfig(inference_proposals=5),
    )
    assert net_from_json(net_to_json(config)) == config
    assert not {"inference_scales", "inference_mirror"} & set(
        net_to_json(TeacherConfig())["picture"]
    )
    assert "inference_proposals" not in net_to_json(TeacherConfig())["proposals"]
    assert "objectness_power" not in net_to_json(TeacherConfig())["choice"]
    assert net_from_json(net_to_json(TeacherConfig())) == TeacherConfig()


@pytest.mark.parametrize("scales", [(), (1.3, 1.0), (1.0, 0.0)])
def test_scales_are_checked(scales: tuple[float, ...]) -> None:
    """Oracle: the field's own words."""
    with pytest.raises(ValueError, match="inference_scales: got"):
        PictureConfig(inference_scales=scales)


def test_the_rule_proposals_has_one_view() -> None:
    """Oracle: the field's own words."""
    with pytest.raises(ValueError, match="one inference_scale and no inference_mirror"):
        TeacherConfig(
            picture=PictureConfig(inference_mirror=True), choice=ChoiceConfig(rule="proposals")
        )
