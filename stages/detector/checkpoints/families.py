"""Families of checkpoints: settings of a Faster R-CNN that do not follow from its weights.

A family is named where a checkpoint is converted; afterwards a teacher's folder holds all of it in
its config.json. Values are those of the public configs that each family's `about` names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from stages.detector.net_config import (
    BoxConfig,
    ChoiceConfig,
    PictureConfig,
    ProposalConfig,
    ResNetConfig,
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """How checkpoints of one origin process a picture, and how their weights are read.

    name: as on the command line. about: which checkpoints it fits, and where its values are from.
    picture, choice, inclusive_boxes: of the net. backbone, proposals, boxes: of the net, but for
        widths, depths and counts, which follow from the weights.
    pyramid_proposals, pyramid_boxes: the two of them where the checkpoint is a pyramid; None where
        the family has none.
    anchors: "config", those of `proposals`, which a checkpoint that holds anchors must agree with;
        or "checkpoint", those that the checkpoint holds and must hold.
    background: index of the background class in the checkpoint.
    no_attribute: index of the class "no attribute", or None where there is none. It is kept, as
        the last, where `boxes.has_no_attribute`; else it never enters the softmax.
    """

    name: str
    about: str
    picture: PictureConfig
    backbone: ResNetConfig = field(default_factory=ResNetConfig)
    proposals: ProposalConfig
    boxes: BoxConfig
    pyramid_proposals: ProposalConfig | None = None
    pyramid_boxes: BoxConfig | None = None
    choice: ChoiceConfig
    inclusive_boxes: bool = False
    anchors: Literal["config", "checkpoint"] = "config"
    background: Literal["first", "last"] = "last"
    no_attribute: Literal["first", "last"] | None = None


IMAGENET_MEAN = (123.675, 116.28, 103.53)
CAFFE_MEAN = (122.7717, 115.9465, 102.9801)
NO_STD = (1.0, 1.0, 1.0)
RATIOS = (0.5, 1.0, 2.0)
C4_PROPOSALS = ProposalConfig(
    anchor_sizes_px=((32.0, 64.0, 128.0, 256.0, 512.0),),
    anchor_ratios=RATIOS,
    num_candidates=6000,
    num_proposals=1000,
    iou=0.7,
)
C4_BOXES = BoxConfig(num_bins=14, sampling_ratio=0, head="res5")
VISUAL_GENOME_PICTURE = PictureConfig(
    shorter_px=600, longer_px=1000, pixel_mean=IMAGENET_MEAN, pixel_std=NO_STD, resize="floats"
)
DETECTIONS = ChoiceConfig(rule="detections", score_threshold=0.05, iou=0.5, max_objects=100)

DETECTRON2 = Family(
    name="detectron2",
    about="detectron2's model zoo: COCO-Detection/faster_rcnn_R_50 and R_101, C4 and FPN, and "
    "what was trained from these configs (configs/Base-RCNN-C4.yaml, Base-RCNN-FPN.yaml)",
    picture=PictureConfig(
        shorter_px=800, longer_px=1333, pixel_mean=IMAGENET_MEAN, pixel_std=NO_STD
    ),
    proposals=C4_PROPOSALS,
    boxes=C4_BOXES,
    pyramid_proposals=ProposalConfig(
        anchor_sizes_px=((32.0,), (64.0,), (128.0,), (256.0,), (512.0,)),
        anchor_ratios=RATIOS,
        num_candidates=1000,
        num_proposals=1000,
        iou=0.7,
    ),
    pyramid_boxes=BoxConfig(num_bins=7, sampling_ratio=0, head="fc"),
    choice=DETECTIONS,
)
DETECTRON2_X101 = dataclasses.replace(
    DETECTRON2,
    name="detectron2-x101",
    about="detectron2's model zoo: COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x",
    picture=dataclasses.replace(DETECTRON2.picture, pixel_std=(58.395, 57.12, 57.375)),
    backbone=ResNetConfig(groups=32, stride_in_1x1=False),
)
VG_D2 = Family(
    name="vg-d2",
    about="bottom-up-attention.pytorch (MILVLG), trained on Visual Genome in detectron2: "
    "bua-d2-frcn-r50 and r101 (configs/d2/base-d2.yaml, utils/extract_d2features.py)",
    picture=VISUAL_GENOME_PICTURE,
    proposals=C4_PROPOSALS,
    boxes=dataclasses.replace(C4_BOXES, sampling_ratio=2),
    choice=DETECTIONS,
)
VG_D2_X152 = dataclasses.replace(
    VG_D2,
    name="vg-d2-x152",
    about="bottom-up-attention.pytorch (MILVLG), trained on Visual Genome in detectron2: "
    "bua-d2-frcn-x152 (configs/d2/test-d2-X152.yaml)",
    backbone=ResNetConfig(groups=32, stride_in_1x1=False),
    boxes=dataclasses.replace(VG_D2.boxes, num_bins=7),
)
VG_CAFFE = Family(
    name="vg-caffe",
    about="bottom-up-attention.pytorch (MILVLG), Anderson et al.'s Caffe weights converted: "
    "bua-caffe-frcn-r101-k10-100 and -fix36 (configs/caffe/test-caffe-r101.yaml, "
    "utils/extract_utils.py); 10 to 100 objects, or 36 with choice.min_objects and "
    "choice.max_objects",
    picture=dataclasses.replace(VISUAL_GENOME_PICTURE, pixel_mean=CAFFE_MEAN),
    backbone=ResNetConfig(max_pool="caffe", res5_dilation=2),
    proposals=ProposalConfig(num_candidates=6000, num_proposals=300, iou=0.7, min_side_px=16.0),
    boxes=BoxConfig(
        pooling="pool",
        num_bins=14,
        head="res5",
        delta_weights=(1.0, 1.0, 1.0, 1.0),
        has_no_attribute=True,
    ),
    choice=ChoiceConfig(
        rule="proposals", score_threshold=0.2, iou=0.3, min_objects=10, max_objects=100
    ),
    inclusive_boxes=True,
    anchors="checkpoint",
    background="first",
    no_attribute="first",
)
VG_CAFFE_AIRSPLAY = Family(
    name="vg-caffe-airsplay",
    about="py-bottom-up-attention (airsplay), the Caffe weights converted to detectron2's own "
    "conventions: faster_rcnn_from_caffe and _attr (configs/VG-Detection/"
    "faster_rcnn_R_101_C4_attr_caffemaxpool.yaml, demo/demo_feature_extraction_attr.ipynb, "
    "which raises choice.iou from 0.5 by steps of 0.1 where fewer than 36 objects remain)",
    picture=dataclasses.replace(VISUAL_GENOME_PICTURE, pixel_mean=CAFFE_MEAN, resize="pillow"),
    backbone=ResNetConfig(max_pool="caffe", res5_dilation=2),
    proposals=dataclasses.replace(
        C4_PROPOSALS, anchor_sizes_px=((64.0, 128.0, 256.0, 512.0),), num_proposals=300
    ),
    boxes=BoxConfig(pooling="pool", num_bins=14, head="res5"),
    choice=dataclasses.replace(DETECTIONS, score_threshold=0.2, max_objects=36),
    no_attribute="last",
)

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (DETECTRON2, DETECTRON2_X101, VG_D2, VG_D2_X152, VG_CAFFE, VG_CAFFE_AIRSPLAY)
}
