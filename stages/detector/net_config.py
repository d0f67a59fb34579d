"""The settings of a teacher's net, in the order in which they apply to a picture.

The defaults are those of the toy data set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Tag

from boxless.errors import BoxlessError
from stages.section_kinds import by_kind

FPN_STRIDES_PX = (4, 8, 16, 32, 64)  # of p2 to p6
FINEST_LEVELS = (2, 3, 4)  # the first of p2 to p4 that a pyramid may begin with
C4_STRIDE_PX = 16


def check(config: object, valid: Mapping[str, tuple[bool, str]]) -> None:
    """ValueError for the first field of `valid` {name: (is valid, what is expected)} that is
    not."""
    for name, (is_valid, expected) in valid.items():
        if not is_valid:
            raise BoxlessError(f"{name}: got {getattr(config, name)!r}, expected {expected}")


@dataclass(frozen=True, kw_only=True)
class PictureConfig:
    """How a decoded picture becomes the network's input.

    shorter_px, longer_px: a picture is resized so that its shorter side is `shorter_px`, or less
        where its longer side would go beyond `longer_px`.
    pixel_mean, pixel_std: taken off and divided by, red green blue, of values 0 to 255.
    resize: "pillow", Pillow's bilinear filter on bytes, each side rounded by itself, then
        normalised, as detectron2; or "floats", normalised first, then interpolated between four
        pixels, with one factor for both sides, as py-faster-rcnn and bottom-up attention.
    inference_scales: ours; the net runs on the picture at these times its size, beginning with 1,
        and what is found is a mean over them (`test_time_augmentation.py`).
    inference_mirror: ours; the net also runs on the mirrored picture, at each size. Each view costs
        as much as the first, and more, as each scores the proposals of all.
    """

    shorter_px: int = 96
    longer_px: int = 512
    pixel_mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    pixel_std: tuple[float, float, float] = (64.0, 64.0, 64.0)
    resize: Literal["pillow", "floats"] = "pillow"
    inference_scales: tuple[float, ...] = (1.0,)
    inference_mirror: bool = False

    def __post_init__(self) -> None:
        check(
            self,
            {
                "shorter_px": (self.shorter_px >= 1, "1 or more"),
                "longer_px": (
                    self.longer_px >= self.shorter_px,
                    f"shorter_px, {self.shorter_px}, or more",
                ),
                "pixel_mean": (
                    len(self.pixel_mean) == 3 and all(map(math.isfinite, self.pixel_mean)),
                    "three numbers",
                ),
                "pixel_std": (
                    len(self.pixel_std) == 3 and min(self.pixel_std) > 0,
                    "three numbers above 0",
                ),
                "resize": (self.resize in ("pillow", "floats"), "'pillow' or 'floats'"),
                "inference_scales": (
                    self.inference_scales[:1] == (1.0,) and min(self.inference_scales) > 0,
                    "1.0, then factors above 0",
                ),
            },
        )

    @property
    def num_views(self) -> int:
        """Views of a picture at inference."""
        return len(self.inference_scales) * (1 + self.inference_mirror)


@dataclass(frozen=True, kw_only=True)
class PlainConfig:
    """The small backbone of `model/plain_backbone.py`, one level.

    stem_width: channels after the first convolution, which halves the picture.
    stage_widths, stage_strides: channels and stride (1 or 2) of each stage after it; together the
        strides give the pixels a cell of the feature map spans (2 * 2 * 1 = 4).
    """

    kind: Literal["plain"] = "plain"
    stem_width: int = 24
    stage_widths: tuple[int, ...] = (48, 64)
    stage_strides: tuple[int, ...] = (2, 1)

    def __post_init__(self) -> None:
        num_stages = len(self.stage_widths)
        check(
            self,
            {
                "kind": (self.kind == "plain", "'plain'"),
                "stem_width": (self.stem_width >= 1, "1 or more"),
                "stage_widths": (
                    num_stages >= 1 and min(self.stage_widths) >= 1,
                    "one count of channels or more",
                ),
                "stage_strides": (
                    len(self.stage_strides) == num_stages and set(self.stage_strides) <= {1, 2},
                    f"{num_stages} strides, each 1 or 2",
                ),
            },
        )

    @property
    def strides_px(self) -> tuple[int, ...]:
        """Pixels that a cell spans, level by level."""
        return (2 * math.prod(self.stage_strides),)


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """A ResNet (`model/resnet.py`), with or without a pyramid (`model/fpn.py`).

    block: "bottleneck" (ResNet 50, 101, 152) or "basic" (ResNet 18, 34: two 3x3 convolutions;
        bottleneck_widths, groups and stride_in_1x1 do not apply).
    stem_width: channels after the stem. stage_widths, bottleneck_widths, num_blocks: channels
        that a block gives, channels inside it, and blocks, of the stages res2 to res5.
    groups: of the 3x3 convolutions; above 1 it is a ResNeXt.
    stride_in_1x1: the stride of a stage is in its first 1x1 convolution, as in the original
        (Caffe) weights, else in its 3x3, as torchvision has it.
    max_pool: of the stem: "padded" (a cell of padding on each side) or "caffe" (none, but a last
        window may hang over the edge).
    res5_dilation: 2 has res5 keep the stride of res4 and dilate its 3x3 convolutions instead.
    fpn_width: channels of the pyramid p2 to p6; null is a C4 model, whose backbone ends with res4
        and whose box head is res5.
    fpn_finest: the pyramid's first level, 2 to 4; 3 leaves out p2, most of a pyramid's work.
    """

    kind: Literal["resnet"] = "resnet"
    block: Literal["bottleneck", "basic"] = "bottleneck"
    stem_width: int = 64
    stage_widths: tuple[int, int, int, int] = (256, 512, 1024, 2048)
    bottleneck_widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    num_blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    groups: int = 1
    stride_in_1x1: bool = True
    max_pool: Literal["padded", "caffe"] = "padded"
    res5_dilation: int = 1
    fpn_width: int | None = None
    fpn_finest: int = 2

    def __post_init__(self) -> None:
        four = {
            name: (
                len(getattr(self, name)) == 4 and min(getattr(self, name)) >= 1,
                "four counts, of res2 to res5",
            )
            for name in ("stage_widths", "bottleneck_widths", "num_blocks")
        }
        check(
            self,
            {
                "kind": (self.kind == "resnet", "'resnet'"),
                "block": (self.block in ("bottleneck", "basic"), "'bottleneck' or 'basic'"),
                "stem_width": (self.stem_width >= 1, "1 or more"),
                **four,
                "groups": (
                    self.groups >= 1
                    and not any(width % self.groups for width in self.bottleneck_widths),
                    f"a divisor of all bottleneck_widths, {self.bottleneck_widths}",
                ),
                "max_pool": (self.max_pool in ("padded", "caffe"), "'padded' or 'caffe'"),
                "res5_dilation": (self.res5_dilation in (1, 2), "1 or 2"),
                "fpn_width": (self.fpn_width is None or self.fpn_width >= 1, "1 or more, or null"),
                "fpn_finest": (self.fpn_finest in FINEST_LEVELS, "2, 3 or 4"),
            },
        )

    @property
    def strides_px(self) -> tuple[int, ...]:
        """Pixels that a cell spans, level by level."""
        if self.fpn_width is None:
            return (C4_STRIDE_PX,)
        return FPN_STRIDES_PX[self.fpn_finest - FINEST_LEVELS[0] :]


@dataclass(frozen=True, kw_only=True)
class ProposalConfig:
    """The region proposal network.

    anchor_sizes_px: sides of the anchors, a tuple a level. anchor_ratios: their height over width.
    cell_anchors: the anchors themselves instead of sizes and ratios: a tuple a level of boxes
        (x0, y0, x1, y1 in pixels from a cell's top left corner).
    hidden_width: channels of its 3x3 convolution; null is those of the levels.
    num_candidates: best anchors of a level that enter suppression.
    num_proposals: proposals of a picture that remain after it.
    inference_proposals: the same where objects are looked for, not trained on (detectron2's
        POST_NMS_TOPK_TEST); null is num_proposals.
    iou: overlap (0 to 1) above which the better of two proposals pushes out the other.
    min_side_px: candidates with a shorter side, in pixels of the original picture, are dropped
        before the best are taken; 0 drops only those without area, and after it.
    """

    anchor_sizes_px: tuple[tuple[float, ...], ...] = ((20.0, 32.0),)
    anchor_ratios: tuple[float, ...] = (1.0,)
    cell_anchors: tuple[tuple[tuple[float, float, float, float], ...], ...] | None = None
    hidden_width: int | None = None
    num_candidates: int = 64
    num_proposals: int = 32
    inference_proposals: int | None = None
    iou: float = 0.7
    min_side_px: float = 0.0

    def __post_init__(self) -> None:
        levels = self.anchor_sizes_px if self.cell_anchors is None else self.cell_anchors
        is_even = len({len(level) for level in levels}) == 1 and len(levels[0]) > 0
        check(
            self,
            {
                "anchor_sizes_px": (
                    not self.anchor_sizes_px
                    if self.cell_anchors is not None
                    else is_even and min(map(min, self.anchor_sizes_px)) > 0,
                    "none beside cell_anchors, else as many sides above 0 on each level",
                ),
                "anchor_ratios": (
                    bool(self.anchor_ratios) and min(self.anchor_ratios) > 0,
                    "ratios above 0",
                ),
                "cell_anchors": (is_even, "as many boxes on each level, or null"),
                "hidden_width": (
                    self.hidden_width is None or self.hidden_width >= 1,
                    "1 or more, or null",
                ),
                "num_candidates": (self.num_candidates >= 1, "1 or more"),
                "num_proposals": (self.num_proposals >= 1, "1 or more"),
                "inference_proposals": (
                    self.inference_proposals is None or self.inference_proposals >= 1,
                    "1 or more, or null",
                ),
                "iou": (0.0 <= self.iou <= 1.0, "0 to 1"),
                "min_side_px": (self.min_side_px >= 0, "0 or more"),
            },
        )

    @property
    def num_levels(self) -> int:
        """Levels that have anchors."""
        return len(self.anchor_sizes_px if self.cell_anchors is None else self.cell_anchors)

    @property
    def num_anchors(self) -> int:
        """Anchors of a cell."""
        if self.cell_anchors is not None:
            return len(self.cell_anchors[0])
        return len(self.anchor_sizes_px[0]) * len(self.anchor_ratios)


@dataclass(frozen=True, kw_only=True)
class BoxConfig:
    """What classifies a proposal: pooling, box head, predictors.

    pooling: "align" (RoIAlign, aligned) or "pool" (the older RoIPool, a maximum a bin).
    num_bins: side, in bins, of what is taken from a box.
    sampling_ratio: samples of RoIAlign a bin and side; 0 is one a cell that the bin spans.
    canonical_box_px: side of a box that reads the level of stride 16 of a pyramid; 224, of the
        paper and detectron2, suits pictures of 600 px and more.
    head: "fc" (two linear layers, as pyramids have), "conv" (two convolutions and a mean, for
        small nets) or "res5" (ResNet's last stage and a mean, as C4 models have).
    feature_size: length of an object's feature, which is what the classifier sees.
    delta_weights: dx, dy, dw and dh are predicted this many times as large.
    class_agnostic: one box a proposal for all classes, else one for each.
    second_classifier: ours; above 0, a linear classifier on the ResNet's last two stages in the box
        learns beside the head's (`second_classifier.py`), and this is its weight, below 1, in the
        logarithm of the class probabilities. Only with a pyramid.
    attribute_embedding_size, attribute_hidden_size: widths of the attribute predictor.
    has_no_attribute: its softmax has one more column, the last, for a box without attribute.
    """

    pooling: Literal["align", "pool"] = "align"
    num_bins: int = 7
    sampling_ratio: int = 1
    canonical_box_px: float = 224.0
    head: Literal["fc", "conv", "res5"] = "fc"
    feature_size: int = 128
    delta_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    class_agnostic: bool = False
    second_classifier: float = 0.0
    attribute_embedding_size: int = 16
    attribute_hidden_size: int = 64
    has_no_attribute: bool = False

    def __post_init__(self) -> None:
        counts = ("num_bins", "feature_size", "attribute_embedding_size", "attribute_hidden_size")
        check(self, {name: (getattr(self, name) >= 1, "1 or more") for name in counts})
        check(
            self,
            {
                "pooling": (
                    self.pooling == "align" or self.pooling == "pool" and self.head == "res5",
                    "'align', or with the head 'res5' 'pool'",
                ),
                "sampling_ratio": (self.sampling_ratio >= 0, "0 or more"),
                "canonical_box_px": (self.canonical_box_px > 0, "above 0"),
                "head": (self.head in ("fc", "conv", "res5"), "'fc', 'conv' or 'res5'"),
                "second_classifier": (0.0 <= self.second_classifier < 1.0, "0 to below 1"),
                "delta_weights": (
                    len(self.delta_weights) == 4 and min(self.delta_weights) > 0,
                    "four numbers above 0",
                ),
            },
        )


@dataclass(frozen=True, kw_only=True)
class ChoiceConfig:
    """Which objects of a picture are reported (`model/postprocess.py`).

    rule: "detections", boxes regressed for a class, suppressed within the class, as detectron2;
        or "proposals", the proposals themselves whose best class counts, as bottom-up attention.
    score_threshold: objects scoring this or less (0 to 1) are not reported; those scoring less,
        for "proposals".
    iou: overlap above which the better of two objects of a class pushes out the other.
    min_objects: of "proposals": the best objects reported even where they score lower.
    max_objects: most objects of a picture. num_top: classes in an object's soft label.
    objectness_power: ours, of "detections": a score is the class's probability times that of the
        proposal network, from 0 to 1, to this power; 0 leaves the class's alone.
    """

    rule: Literal["detections", "proposals"] = "detections"
    score_threshold: float = 0.02
    iou: float = 0.5
    min_objects: int = 0
    max_objects: int = 36
    num_top: int = 5
    objectness_power: float = 0.0

    def __post_init__(self) -> None:
        check(
            self,
            {
                "rule": (self.rule in ("detections", "proposals"), "'detections' or 'proposals'"),
                "score_threshold": (0.0 <= self.score_threshold <= 1.0, "0 to 1"),
                "iou": (0.0 <= self.iou <= 1.0, "0 to 1"),
                "max_objects": (self.max_objects >= 1, "1 or more"),
                "min_objects": (
                    0 <= self.min_objects <= (self.max_objects if self.rule == "proposals" else 0),
                    "0 for the rule 'detections', 0 to max_objects for 'proposals'",
                ),
                "num_top": (self.num_top >= 1, "1 or more"),
                "objectness_power": (
                    self.objectness_power == 0
                    or (self.objectness_power > 0 and self.rule == "detections"),
                    "0 or more, and 0 for the rule 'proposals'",
                ),
            },
        )


BackboneConfig = Annotated[
    Annotated[PlainConfig, Tag("plain")] | Annotated[ResNetConfig, Tag("resnet")],
    by_kind("plain"),
]


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The net and how a picture is prepared for it; kept with the weights in a teacher's folder.

    picture, backbone, proposals, boxes, choice: its parts, in this order.
    inclusive_boxes: boxes are Caffe's, whose last pixel counts: a width is x1 - x0 + 1, and a
        picture ends at w - 1, h - 1.
    """

    picture: PictureConfig = field(default_factory=PictureConfig)
    backbone: BackboneConfig = field(default_factory=PlainConfig)
    proposals: ProposalConfig = field(default_factory=ProposalConfig)
    boxes: BoxConfig = field(default_factory=BoxConfig)
    choice: ChoiceConfig = field(default_factory=ChoiceConfig)
    inclusive_boxes: bool = False

    def __post_init__(self) -> None:
        num_levels = len(self.backbone.strides_px)
        is_c4 = isinstance(self.backbone, ResNetConfig) and self.backbone.fpn_width is None
        width = self.backbone.stage_widths[-1]
        check(
            self,
            {
                "proposals": (
                    self.proposals.num_levels == num_levels,
                    f"anchors of {num_levels} levels, as the backbone has them",
                ),
                "boxes": (
                    (self.boxes.head == "res5") == is_c4
                    and (not is_c4 or self.boxes.feature_size == width),
                    f"the head 'res5' with a feature_size of {width}, as the backbone is a "
                    "ResNet without a pyramid"
                    if is_c4
                    else "the head 'fc' or 'conv', as the backbone leaves no res5 for it",
                ),
                "picture": (
                    self.picture.num_views == 1 or self.choice.rule == "detections",
                    "one inference_scale and no inference_mirror with the rule 'proposals'",
                ),
            },
        )
        has_pyramid = isinstance(self.backbone, ResNetConfig) and not is_c4
        if self.boxes.second_classifier and not has_pyramid:
            raise BoxlessError(
                f"boxes.second_classifier: got {self.boxes.second_classifier}, expected 0, as the "
                "backbone is no ResNet with a pyramid (backbone.fpn_width)"
            )
