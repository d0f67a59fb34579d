"""The second classifier of a teacher with a pyramid."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from teacher_scenes import NET, draw

from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.model.second_classifier import joined
from stages.detector.model.test_time_augmentation import View, find_in_views
from stages.detector.net_config import ChoiceConfig, ProposalConfig, ResNetConfig, TeacherConfig
from stages.detector.net_json import net_from_json, net_to_json
from stages.detector.training.augmentation import step_random
from stages.detector.training.config import TeachConfig
from stages.detector.training.labeled_pictures import Truth
from stages.detector.training.losses import detection_losses
from stages.detector.training.training_set import Batch

BACKBONE = ResNetConfig(
    stem_width=4,
    stage_widths=(8, 12, 16, 24),
    bottleneck_widths=(4, 4, 4, 4),
    num_blocks=(1, 1, 1, 1),
    fpn_width=8,
    fpn_finest=3,
)
NUM_LABELS = 3


def config(**boxes: object) -> TeacherConfig:
    return dataclasses.replace(
        NET,
        backbone=BACKBONE,
        proposals=ProposalConfig(anchor_sizes_px=((16,), (32,), (48,), (64,)), num_proposals=12),
        boxes=dataclasses.replace(NET.boxes, head="fc", **boxes),
        choice=ChoiceConfig(score_threshold=0.05),
    )


def net(**boxes: object) -> FasterRCNN:
    torch.manual_seed(5)
    model = FasterRCNN(config(**boxes), num_labels=NUM_LABELS, num_attributes=0)
    torch.nn.init.normal_(model.box_predictor.cls_score.weight, std=0.5)
    if model.second_classifier is not None:
        torch.nn.init.normal_(model.second_classifier.cls_score.weight, std=0.5)
    return model.eval()


def batch() -> Batch:
    boxes = torch.tensor([[4.0, 4.0, 40.0, 40.0], [20.0, 10.0, 60.0, 50.0]])
    truth = Truth(boxes, torch.tensor([0, 2]), torch.tensor([-1, -1]))
    torch.manual_seed(1)
    return Batch(["a"], torch.randn(1, 3, 64, 64), [(64, 64)], [truth], 1)


def losses(model: FasterRCNN) -> dict[str, torch.Tensor]:
    settings = TeachConfig(net=model.config, num_regions=16)
    return detection_losses(model, batch(), settings, [step_random(0, 0, "sample a")])


def test_joined_is_the_geometric_mean() -> None:
    """Oracle: the formula, p ** 0.7 * q ** 0.3 made to sum to 1."""
    p, q = torch.rand(2, 5, 4).softmax(-1)
    wanted = p**0.7 * q**0.3
    got = joined(p.log() + 3.0, q.log(), 0.3).softmax(-1)
    torch.testing.assert_close(got, wanted / wanted.sum(-1, keepdim=True))


def test_objects_are_scored_by_both() -> None:
    """Oracle: both classifiers asked by hand; without the second one's weight the scores are
    others."""
    model, picture = net(second_classifier=0.4), torch.randn(1, 3, 64, 64)
    (found,) = model.find(picture, [(64, 64)])
    with torch.no_grad():
        maps = model.maps(picture)
        (proposals,) = model.proposal_network.propose(
            model.proposal_network(maps.levels), [(64, 64)]
        )
        looked = model.look(maps, [proposals.boxes])
        assert looked.second is not None
        both = joined(looked.logits, looked.second, 0.4).softmax(1)
    assert len(found.boxes) > 2
    for score, label in zip(found.scores, found.labels):
        assert (both[:, label] - score).abs().min() < 1e-6
        assert (looked.logits.softmax(1)[:, label] - score).abs().min() > 1e-6


def test_views_take_both_too() -> None:
    """Oracle: `FasterRCNN.find`, as one view is the plain way."""
    model = net(second_classifier=0.4)
    picture = torch.from_numpy(draw(1, width=64)[0].copy()).permute(2, 0, 1)[None].float() / 64 - 2
    size = (picture.shape[2], picture.shape[3])
    (plain,) = model.find(picture, [size])
    viewed = find_in_views(model, [View(picture, (1.0, 1.0))])
    assert len(plain.boxes) > 2
    torch.testing.assert_close(viewed.scores, plain.scores)
    torch.testing.assert_close(viewed.boxes, plain.boxes)


def test_its_loss_leaves_the_rest_alone() -> None:
    """Oracle: the gradients and losses of the same net without it, equal in every number, and
    nothing but its own layer learns by its loss."""
    plain, model = net(), net(second_classifier=0.4)
    model.load_state_dict(plain.state_dict(), strict=False)
    wanted, got = losses(plain), losses(model)
    second = got.pop("second_label")
    assert second > 0
    for name, loss in wanted.items():
        torch.testing.assert_close(got[name], loss, rtol=0, atol=0)
    second.backward()
    learning = [name for name, weight in model.named_parameters() if weight.grad is not None]
    assert learning == ["second_classifier.cls_score.weight", "second_classifier.cls_score.bias"]


def test_settings_are_checked_and_kept() -> None:
    """Oracle: the config itself, after JSON; a config without it has the JSON that it had."""
    with_it = config(second_classifier=0.3)
    assert net_from_json(net_to_json(with_it)) == with_it
    assert "second_classifier" not in net_to_json(config())["boxes"]
    with pytest.raises(ValueError, match="second_classifier: got 0.3, expected 0, as the backbone"):
        dataclasses.replace(NET, boxes=dataclasses.replace(NET.boxes, second_classifier=0.3))
    with pytest.raises(ValueError, match="second_classifier: got 1.0, expected 0 to below 1"):
        config(second_classifier=1.0)
