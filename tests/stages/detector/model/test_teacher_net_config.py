"""The net's config: what it checks, and that JSON and recipes give it back."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from pipeline.recipe.dataclass_values import RecipeError, build, plain
from stages.detector.net_config import (
    BackboneConfig,
    BoxConfig,
    ChoiceConfig,
    PictureConfig,
    PlainConfig,
    ProposalConfig,
    ResNetConfig,
    TeacherConfig,
)
from stages.detector.net_json import net_from_json, net_to_json
from stages.detector.training.config import TeachConfig

FPN = TeacherConfig(
    backbone=ResNetConfig(fpn_width=256),
    proposals=ProposalConfig(anchor_sizes_px=((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))),
)
CAFFE = TeacherConfig(
    picture=PictureConfig(resize="floats"),
    backbone=ResNetConfig(res5_dilation=2, max_pool="caffe", num_blocks=(3, 4, 23, 3)),
    proposals=ProposalConfig(
        anchor_sizes_px=(),
        cell_anchors=(((-7.5, -8.0, 7.5, 8.0),),),
        hidden_width=512,
        min_side_px=16.0,
    ),
    boxes=BoxConfig(
        head="res5",
        feature_size=2048,
        pooling="pool",
        has_no_attribute=True,
        delta_weights=(1.0, 1.0, 1.0, 1.0),
    ),
    choice=ChoiceConfig(rule="proposals", min_objects=10, max_objects=100),
    inclusive_boxes=True,
)


@pytest.mark.parametrize("net", [TeacherConfig(), FPN, CAFFE])
def test_json_gives_back_what_it_was_made_from(net: TeacherConfig) -> None:
    """Oracle: the config itself."""
    assert net_from_json(json.loads(json.dumps(dataclasses.asdict(net)))) == net


@pytest.mark.parametrize("net", [TeacherConfig(), FPN, CAFFE])
def test_a_recipe_gives_back_what_it_was_made_from(net: TeacherConfig) -> None:
    """Oracle: the config itself; the backbone's kind tells which of two dataclasses it is."""
    assert build(TeacherConfig, plain(net)) == net


@pytest.mark.parametrize(
    "backbone, expected",
    [
        ({"stem_width": 8}, PlainConfig(stem_width=8)),
        ({"kind": "resnet", "groups": 32}, ResNetConfig(groups=32)),
    ],
)
def test_a_recipe_may_say_part_of_a_backbone(backbone: dict[str, Any], expected: object) -> None:
    """Oracle: by hand; without a kind it is the toy's."""
    built = build(BackboneConfig, backbone, "teach.net.backbone")
    assert built == expected


@pytest.mark.parametrize(
    "net, words",
    [
        (
            {"backbone": {"kind": "vgg"}},
            'net.backbone.kind is "vgg"; expected one of "plain", "resn',
        ),
        (
            {"backbone": {"kind": "resnet", "stage_strides": [1]}},
            "net.backbone.stage_strides is not",
        ),
        ({"backbone": {"stem_width": 0}}, "net.backbone.stem_width: got 0, expected 1 or more"),
        ({"backbone": 7}, "net.backbone is 7"),
        ({"boxes": {"head": "res5"}}, "net.boxes: got BoxConfig.*expected the head 'fc' or 'conv'"),
    ],
)
def test_a_recipe_is_reported_where_it_errs(net: dict[str, Any], words: str) -> None:
    """Oracle: the dotted path, what was got, what is expected."""
    with pytest.raises(RecipeError, match=words):
        build(TeacherConfig, net, "net")


@pytest.mark.parametrize(
    "part, field, value",
    [
        (PictureConfig, "shorter_px", 0),
        (PictureConfig, "longer_px", 40),
        (PictureConfig, "pixel_std", (1.0, 0.0, 1.0)),
        (PictureConfig, "resize", "area"),
        (PlainConfig, "stage_widths", ()),
        (PlainConfig, "stage_strides", (2, 3)),
        (ResNetConfig, "groups", 3),
        (ResNetConfig, "num_blocks", (3, 4, 6)),
        (ResNetConfig, "max_pool", "none"),
        (ResNetConfig, "res5_dilation", 4),
        (ProposalConfig, "anchor_sizes_px", ((),)),
        (ProposalConfig, "anchor_sizes_px", ()),
        (ProposalConfig, "anchor_sizes_px", ((9.0,), (9.0, 8.0))),
        (ProposalConfig, "anchor_ratios", (0.0,)),
        (ProposalConfig, "iou", 1.5),
        (BoxConfig, "head", "res4"),
        (BoxConfig, "pooling", "crop"),
        (BoxConfig, "pooling", "pool"),
        (BoxConfig, "delta_weights", (1.0, 0.0, 1.0, 1.0)),
        (ChoiceConfig, "iou", 1.5),
        (ChoiceConfig, "num_top", 0),
        (ChoiceConfig, "rule", "best"),
        (ChoiceConfig, "min_objects", 10),
        (TeacherConfig, "boxes", BoxConfig(head="res5")),
    ],
)
def test_the_net_checks_its_fields(part: type, field: str, value: object) -> None:
    """Oracle: a ValueError that begins with the field's name and tells what is expected."""
    with pytest.raises(ValueError, match=f"^{field}: got .*, expected "):
        part(**{field: value})


def test_parts_that_do_not_belong_together_are_refused() -> None:
    """Oracle: by hand; a pyramid has five levels, a C4 model's feature is res5's."""
    with pytest.raises(ValueError, match="^proposals: got .*anchors of 5 levels"):
        TeacherConfig(backbone=ResNetConfig(fpn_width=256))
    with pytest.raises(ValueError, match="^boxes: got .*a feature_size of 2048"):
        TeacherConfig(backbone=ResNetConfig(), boxes=BoxConfig(head="res5", feature_size=9))
    with pytest.raises(ValueError, match="^anchor_sizes_px: got .*none beside cell_anchors"):
        ProposalConfig(cell_anchors=CAFFE.proposals.cell_anchors)


def test_fields_that_came_later_leave_older_fingerprints_alone() -> None:
    """Oracle: the keys that schema 2 had before those fields; other values are kept."""
    net = TeacherConfig()
    boxes = net_to_json(net)["boxes"]
    assert "canonical_box_px" not in boxes and "class_agnostic" not in boxes
    other = dataclasses.replace(net, boxes=BoxConfig(canonical_box_px=80.0))
    assert net_to_json(other)["boxes"]["canonical_box_px"] == 80.0
    assert net_from_json(json.loads(json.dumps(net_to_json(other)))) == other


def test_a_net_of_caffe_s_kind_is_not_trained() -> None:
    """Oracle: the message says what to do instead."""
    with pytest.raises(ValueError, match="^net: got inclusive_boxes True.*boxless convert"):
        TeachConfig(net=TeacherConfig(inclusive_boxes=True))
    with pytest.raises(ValueError, match="^net: got .*min_side_px 3"):
        TeachConfig(net=TeacherConfig(proposals=ProposalConfig(min_side_px=3.0)))


@pytest.mark.parametrize(
    "edit",
    [
        {"boxes": None},
        {"backbone": {"kind": "vgg"}},
        {"picture": {"size_px": 3}},
        {"width": 3},
        {"choice": {"num_top": "many"}},
    ],
)
def test_json_of_another_kind_is_refused(edit: dict[str, Any]) -> None:
    """Oracle: a ValueError, whatever is wrong."""
    with pytest.raises(ValueError, match="net: got|num_top"):
        net_from_json({**dataclasses.asdict(TeacherConfig()), **edit})
