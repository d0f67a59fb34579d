"""Distill with our own Faster R-CNN, untrained and small, from its folder to object shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from distill_fakes import make_sample, write_images

from sharding.reading.sample_reader import iterate
from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.net_config import (
    BoxConfig,
    ChoiceConfig,
    PictureConfig,
    PlainConfig,
    ProposalConfig,
    TeacherConfig,
)
from stages.detector.predictor import Teacher
from stages.detector.teacher_folder import load_teacher, save_teacher
from stages.distill.config import DistillConfig
from stages.distill.inference.decode import decode
from stages.distill.make_object_source import make_object_source
from stages.distill.run import distill

NET = TeacherConfig(
    picture=PictureConfig(shorter_px=32, longer_px=64),
    backbone=PlainConfig(stem_width=8, stage_widths=(8, 16), stage_strides=(2, 1)),
    proposals=ProposalConfig(anchor_sizes_px=((12.0,),), num_candidates=16, num_proposals=6),
    boxes=BoxConfig(feature_size=12),
    choice=ChoiceConfig(num_top=3),
)
NAMES: dict[str, Any] = {
    "label_names": ["circle", "square", "star"],
    "attribute_names": ["red", "blue"],
}


def test_shards_hold_what_the_teacher_sees_in_each_picture_alone(tmp_path: Path) -> None:
    """Oracle: `detect` on one picture at a time, bit for bit."""
    torch.manual_seed(0)
    net = FasterRCNN(NET, num_labels=3, num_attributes=2)
    save_teacher(tmp_path / "teacher", net, **NAMES)
    teacher = load_teacher(tmp_path / "teacher")
    assert isinstance(teacher, Teacher)
    random = np.random.default_rng(0)
    samples = [make_sample(f"s{i}", ["a red circle", ""], random) for i in range(7)]
    write_images(tmp_path / "images", {"train-000000.tar": samples})
    config = DistillConfig(
        batch_size=3, phrases="lexicon", score_threshold=0.0, max_objects=5, min_objects=0
    )
    out = tmp_path / "objects"
    object_source = make_object_source(config, tmp_path / "teacher")
    catalog = distill(config, images=tmp_path / "images", object_source=object_source, out=out)
    assert catalog is not None
    assert (catalog.metadata["feature_size"], catalog.metadata["num_top"]) == (12, 3)
    assert catalog.metadata["teacher"] == teacher.fingerprint
    num_objects = 0
    for sample, seen in zip(samples, iterate(out / "train-000000.tar"), strict=True):
        (alone,) = teacher.detect([teacher.prepare(decode(sample))])
        assert seen.objects is not None
        assert len(seen.objects) == min(len(alone), 5)
        num_objects += len(seen.objects)
        assert seen.objects.tobytes() == alone[:5].tobytes()
    assert num_objects > 10
