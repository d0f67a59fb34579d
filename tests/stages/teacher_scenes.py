"""Small scenes with true boxes for the teacher's tests, and the smallest net that learns them."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sharding.format.catalog import write_catalog
from sharding.format.schema import Sample
from sharding.writing.shard_writer import write_shard
from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.net_config import (
    BoxConfig,
    ChoiceConfig,
    PictureConfig,
    PlainConfig,
    ProposalConfig,
    TeacherConfig,
)
from stages.detector.training.config import TeachConfig
from stages.distill.object_source import Detector

LABELS = ["bar", "block"]
ATTRIBUTES = ["red", "green"]
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60)}

NET = TeacherConfig(
    picture=PictureConfig(shorter_px=48, longer_px=96),
    backbone=PlainConfig(stem_width=8, stage_widths=(16, 24), stage_strides=(2, 1)),
    proposals=ProposalConfig(anchor_sizes_px=((12.0, 20.0),), num_candidates=48, num_proposals=16),
    boxes=BoxConfig(
        num_bins=3,
        sampling_ratio=1,
        feature_size=32,
        attribute_embedding_size=4,
        attribute_hidden_size=16,
    ),
    choice=ChoiceConfig(max_objects=10, num_top=2),
)
TEACH = TeachConfig(
    net=NET,
    num_steps=6,
    micro_batch_size=4,
    learning_rate=0.05,
    warmup_steps=2,
    num_anchors=32,
    num_regions=16,
    checkpoint_every_steps=2,
    log_every_steps=1,
)


def draw(
    seed: int, *, height: int = 48, width: int = 48
) -> tuple[np.ndarray, dict[str, list[Any]]]:
    """A picture [H, W, 3] with one object in its left and one in its right half, and its truth."""
    random = np.random.default_rng(seed)
    picture = random.integers(90, 140, (height, width, 3)).astype(np.uint8)
    truth: dict[str, list[Any]] = {"boxes": [], "labels": [], "attributes": []}
    for left in (0, width // 2):
        label = str(random.choice(LABELS))
        colour = str(random.choice(ATTRIBUTES))
        box_height, box_width = (8, 20) if label == "bar" else (16, 16)
        x = left + int(random.integers(0, width // 2 - box_width))
        y = int(random.integers(0, height - box_height))
        picture[y : y + box_height, x : x + box_width] = COLOURS[colour]
        truth["boxes"].append([float(x), float(y), float(x + box_width), float(y + box_height)])
        truth["labels"].append(label)
        truth["attributes"].append(colour)
    return picture, truth


def png(picture: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    return out.getvalue()


def sample_of(key: str, picture: np.ndarray, truth: dict[str, list[Any]] | None) -> Sample:
    info: dict[str, Any] = {
        "captions": [],
        "height": picture.shape[0],
        "image_id": key,
        "width": picture.shape[1],
    }
    if truth is not None:
        info["truth"] = truth
    return Sample(key=key, image=png(picture), extension="png", info=info)


def write_samples(
    folder: Path, splits: dict[str, Sequence[Sequence[Sample]]], label_names: Sequence[str] = LABELS
) -> Path:
    """Image shards {split: [the samples of each shard]} with a catalog."""
    folder.mkdir(parents=True)
    split_of = {}
    for split, shards in splits.items():
        for number, samples in enumerate(shards):
            tar = f"{split}-{number:06d}.tar"
            write_shard(folder / tar, samples, fingerprint={})
            split_of[tar] = split
    about = {"label_names": list(label_names), "attribute_names": ATTRIBUTES}
    write_catalog(folder, kind="images", splits=split_of, metadata=about)
    return folder


def write_scenes(folder: Path, *, num_train: int, num_heldout: int) -> Path:
    """Image shards of drawn scenes, the train split in two shards of unequal size."""
    train = [sample_of(f"train-{seed}", *draw(seed)) for seed in range(num_train)]
    heldout = [sample_of(f"heldout-{seed}", *draw(1000 + seed)) for seed in range(num_heldout)]
    cut = num_train // 3
    return write_samples(folder, {"train": [train[:cut], train[cut:]], "heldout": [heldout]})


def replace_in(net: TeacherConfig, part: str, **values: Any) -> TeacherConfig:
    """`net` with other `values` in its part of that name."""
    return dataclasses.replace(net, **{part: dataclasses.replace(getattr(net, part), **values)})


def look(teacher: Detector, pictures: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """The objects of pictures uint8 [H, W, 3] of any sizes, each looked at alone."""
    return [teacher.detect([teacher.prepare(picture)])[0] for picture in pictures]


def random_model(seed: int = 0, net: TeacherConfig = NET) -> FasterRCNN:
    """A net as initialised, but with predictors wide awake, so that it finds many objects."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FasterRCNN(net, num_labels=len(LABELS), num_attributes=len(ATTRIBUTES))
        for layer in (
            model.box_predictor.cls_score,
            model.box_predictor.bbox_pred,
            model.proposal_network.objectness_logits,
        ):
            torch.nn.init.normal_(layer.weight, std=0.5)
    return model.eval()
