"""Parity with detectron2, array by array. Oracle: the numbers that detectron2 itself gave for small
nets of its model zoo's shapes (`golden_nets.py`), from the picture's bytes to the boxes reported.

Whole numbers and orders are equal. Tolerances of the others are absolute and a hundredth to a tenth
of what any decision hangs by, about twenty times what float32 on other hardware differs by.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from golden_nets import NAMES, arrays_of, family_of, net_of, weights_of
from torch import Tensor

from stages.detector.checkpoints.families import DETECTRON2, Family
from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.model.rpn import AnchorScores, Proposals
from stages.detector.ops.pooler import Level, pick_levels, pool
from stages.detector.ops.resize import stack
from stages.detector.predictor import Teacher

TOLERANCES = {
    "feature": 1e-4,
    "rpn_logits": 2e-4,
    "rpn_deltas": 5e-5,
    "proposals": 5e-3,
    "objectness": 2e-4,
    "proposal_level": 0.0,
    "pooled_first": 1e-3,
    "box_features": 3e-4,
    "class_logits": 5e-4,
    "box_deltas": 3e-4,
    "boxes": 5e-3,
    "boxes_resized": 5e-3,
    "scores": 3e-5,
    "classes": 0.0,
    "proposal_index": 0.0,
    "features": 3e-4,
    "attr_class": 0.0,
    "attr_logits": 1e-3,
    "attr_probs": 1e-4,
}
LEVELS = {"c4": ("res4",), "c4_attributes": ("res4",), "fpn": ("p2", "p3", "p4", "p5", "p6")}
Arrays = dict[str, np.ndarray]


class Look(NamedTuple):
    """All that our net says of a batch."""

    levels: list[Level]
    scores: list[AnchorScores]
    proposals: list[Proposals]


def look(model: FasterRCNN, pictures: Tensor, sizes: list[tuple[int, int]]) -> Look:
    with torch.no_grad():
        levels = model.backbone(pictures)
        scores = model.proposal_network(levels)
        return Look(levels, scores, model.proposal_network.propose(scores, sizes))


def maps_of(name: str, what: Look, row: int) -> Arrays:
    """The dense maps of one picture, as the file has them."""
    arrays: Arrays = {}
    for level_name, level, scores in zip(LEVELS[name], what.levels, what.scores):
        suffix = f"_{level_name}" if name == "fpn" else ""
        height, width = level.feature.shape[2:]
        logits = scores.logits[row].view(height, width, -1).permute(2, 0, 1)
        deltas = scores.deltas[row].view(height, width, -1).permute(2, 0, 1)
        arrays |= {
            level_name: level.feature[row : row + 1].numpy(),
            f"rpn_logits{suffix}": logits[None].numpy(),
            f"rpn_deltas{suffix}": deltas[None].numpy(),
        }
    return arrays


@torch.no_grad()
def boxes_of(
    name: str,
    model: FasterRCNN,
    what: Look,
    pictures: Tensor,
    sizes: list[tuple[int, int]],
    row: int,
    image_size: np.ndarray,
) -> Arrays:
    """Proposals and objects of one picture, as the file has them."""
    boxes, logits = what.proposals[row]
    levels = [Level(level.feature[row : row + 1], level.stride) for level in what.levels]
    features = model.features(levels, [boxes])
    class_logits, deltas = model.box_predictor(features)
    found = model.find(pictures, sizes)[row]
    scale = torch.tensor([image_size[1] / sizes[row][1], image_size[0] / sizes[row][0]] * 2)
    source = (found.features[:, None] == features[None]).all(2).float().argmax(1)
    arrays = {
        "proposals": boxes,
        "objectness": logits,
        "box_features": features,
        "class_logits": class_logits,
        "box_deltas": deltas.flatten(1),
        "boxes_resized": found.boxes,
        "boxes": found.boxes * scale,
        "scores": found.scores,
        "classes": found.labels,
        "proposal_index": source,
        "features": found.features,
        "pooled_first": pool(
            levels[:4],
            [boxes[: 8 if name == "fpn" else 1]],
            num_bins=model.config.boxes.num_bins,
            sampling_ratio=model.config.boxes.sampling_ratio,
        ),
    }
    if name == "fpn":
        arrays["proposal_level"] = pick_levels(boxes, [4, 8, 16, 32]) + 2
    if model.attribute_predictor is not None:
        labels = class_logits.argmax(1)
        arrays |= {"attr_class": labels, "attr_logits": model.attribute_predictor(features, labels)}
        assert found.attributes is not None
        arrays["attr_probs"] = found.attributes
    return {key: array.numpy() for key, array in arrays.items()}


def disagreements(name: str, prefix: str, arrays: Arrays) -> list[str]:
    """The arrays of the file that ours differ from by more than the tolerance."""
    golden, wrong = arrays_of(name), []
    for key, array in arrays.items():
        if f"{prefix}_{key}" not in golden:
            continue
        expected = golden[f"{prefix}_{key}"]
        kind = "feature" if key in LEVELS[name] else key.split("_p")[0]
        tolerance = TOLERANCES.get(key, TOLERANCES.get(kind))
        assert tolerance is not None, key
        if (
            array.shape != expected.shape
            or np.abs(array.astype(np.float64) - expected).max(initial=0) > tolerance
        ):
            wrong.append(f"{prefix}_{key}")
    return wrong


def compared(name: str, prefix: str, arrays: Arrays) -> set[str]:
    """The arrays of the file that `disagreements` looked at."""
    return {f"{prefix}_{key}" for key in arrays} & arrays_of(name).keys()


def input_of(name: str, prefix: str) -> tuple[Tensor, tuple[int, int]]:
    """The file's network input in red green blue [1, 3, h, w], without padding, and its size."""
    height, width = (int(side) for side in arrays_of(name)[f"{prefix}_resized_size"])
    array = arrays_of(name)[f"{prefix}_net_input"][:, ::-1, :height, :width]
    return torch.from_numpy(array.copy()), (height, width)


def compare_alone(name: str, prefix: str, model: FasterRCNN) -> tuple[list[str], set[str]]:
    """What is wrong, and what was looked at, for one picture alone."""
    pictures, size = input_of(name, prefix)
    what = look(model, pictures, [size])
    arrays = maps_of(name, what, 0) | boxes_of(
        name, model, what, pictures, [size], 0, arrays_of(name)[f"{prefix}_image_size"]
    )
    return disagreements(name, prefix, arrays), compared(name, prefix, arrays)


@pytest.mark.parametrize("prefix", ["a", "b"])
@pytest.mark.parametrize("name", NAMES)
def test_every_array_of_a_picture_alone(name: str, prefix: str) -> None:
    """From the network's input on, every array that the file has of it."""
    wrong, seen = compare_alone(name, prefix, net_of(weights_of(name), family_of(name)))
    assert wrong == []
    given = {
        f"{prefix}_{key}" for key in ("image", "image_size", "resized", "resized_size", "net_input")
    }
    assert {key for key in arrays_of(name) if key.startswith(f"{prefix}_")} - given == seen


@pytest.mark.parametrize("name", ["c4", "fpn"])
def test_every_array_of_a_batch(name: str) -> None:
    """Two unequal pictures on one canvas of zeros, as detectron2 pads them (ours never are)."""
    model, golden = net_of(weights_of(name), family_of(name)), arrays_of(name)
    canvas = torch.zeros(2, 3, *golden["ab_canvas"].tolist())
    sizes = []
    for row, prefix in enumerate("ab"):
        picture, size = input_of(name, prefix)
        canvas[row, :, : size[0], : size[1]] = picture[0]
        sizes.append(size)
    what = look(model, canvas, sizes)
    seen = {"ab_canvas"}
    for row, prefix in enumerate("ab"):
        arrays = boxes_of(name, model, what, canvas, sizes, row, golden[f"{prefix}_image_size"])
        assert disagreements(name, f"ab{row}", arrays) == []
        seen |= compared(name, f"ab{row}", arrays)
    maps = {key: level.feature.numpy() for key, level in zip(LEVELS[name], what.levels)}
    assert disagreements(name, "ab", maps) == []
    assert {key for key in golden if key.startswith("ab")} == seen | compared(name, "ab", maps)


def check_objects_of(name: str, prefix: str, family: Family) -> None:
    """AssertionError unless the file's picture gives the file's objects, as a teacher of `family`
    reports them; scores and features to half precision, which is what an object array keeps."""
    golden = arrays_of(name)
    num_attributes = 12 if name == "c4_attributes" else 0
    teacher = Teacher(
        net_of(weights_of(name), family),
        fingerprint="",
        label_names=[str(number) for number in range(20)],
        attribute_names=[str(number) for number in range(num_attributes)],
    )
    picture = torch.from_numpy(golden[f"{prefix}_image"][..., ::-1].copy())
    prepared = teacher.prepare(picture)
    assert prepared.size == tuple(golden[f"{prefix}_resized_size"])
    if name != "fpn":
        assert np.array_equal(prepared.pixels.numpy()[..., ::-1], golden[f"{prefix}_resized"])
    pictures = stack([prepared.pixels], family.picture, torch.device("cpu"))
    assert torch.equal(pictures, input_of(name, prefix)[0])
    (array,) = teacher.detect([prepared])
    assert array["label"].tolist() == golden[f"{prefix}_classes"].tolist()
    np.testing.assert_allclose(array["box"], golden[f"{prefix}_boxes"], atol=5e-3)
    np.testing.assert_allclose(array["score"], golden[f"{prefix}_scores"], rtol=1e-3)
    np.testing.assert_allclose(array["feature"], golden[f"{prefix}_features"], rtol=1e-3, atol=1e-3)
    if num_attributes:
        probabilities = golden[f"{prefix}_attr_probs"]
        assert array["attribute"].tolist() == probabilities.argmax(1).tolist()
        np.testing.assert_allclose(array["attribute_score"], probabilities.max(1), rtol=1e-3)


@pytest.mark.parametrize("prefix", ["a", "b"])
@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_from_the_bytes_to_the_objects(name: str, prefix: str) -> None:
    """The file's picture in, its boxes in pixels of that picture out."""
    check_objects_of(name, prefix, family_of(name))


def changed(part: str, **values: object) -> Callable[[Family], Family]:
    def change(family: Family) -> Family:
        return dataclasses.replace(
            family, **{part: dataclasses.replace(getattr(family, part), **values)}
        )

    return change


ANCHORS = DETECTRON2.proposals.anchor_sizes_px[0]
CORNERS = tuple(
    (8 - size / 2, 8 - size / 2, 8 + size / 2, 8 + size / 2) for size in ANCHORS for _ in range(3)
)


@pytest.mark.parametrize(
    "name, change",
    [
        ("c4", changed("backbone", stride_in_1x1=False)),
        ("c4", changed("backbone", max_pool="caffe")),
        ("c4", changed("backbone", res5_dilation=2)),
        ("c4", changed("proposals", cell_anchors=(CORNERS,), anchor_sizes_px=())),
        ("c4", changed("proposals", num_candidates=60)),
        ("c4", changed("proposals", iou=0.75)),
        ("c4", changed("proposals", num_proposals=65)),
        ("c4", changed("boxes", sampling_ratio=2)),
        ("c4", changed("boxes", pooling="pool")),
        ("c4", changed("boxes", delta_weights=(1.0, 1.0, 1.0, 1.0))),
        ("c4", changed("choice", max_objects=100)),
        ("c4", changed("choice", iou=0.3)),
        ("c4", lambda family: dataclasses.replace(family, inclusive_boxes=True)),
        ("c4_attributes", changed("boxes", sampling_ratio=0)),
        ("c4_attributes", changed("choice", score_threshold=0.2)),
        ("fpn", changed("backbone", stride_in_1x1=False)),
        ("fpn", changed("pyramid_proposals", num_candidates=1000)),
        ("fpn", changed("pyramid_boxes", sampling_ratio=2)),
        ("fpn", lambda family: dataclasses.replace(family, inclusive_boxes=True)),
    ],
)
def test_a_wrong_setting_is_noticed(name: str, change: Callable[[Family], Family]) -> None:
    """The comparison can fail: it tells each of a family's settings from another."""
    wrong, _ = compare_alone(name, "a", net_of(weights_of(name), change(family_of(name))))
    assert len(wrong) >= 2, wrong


@pytest.mark.parametrize(
    "change",
    [
        changed("picture", shorter_px=161),
        changed("picture", longer_px=266),
        changed("picture", pixel_mean=(103.53, 116.28, 123.675)),
        changed("picture", pixel_std=(57.375, 57.12, 58.395)),
    ],
)
def test_a_wrong_look_at_the_picture_is_noticed(change: Callable[[Family], Family]) -> None:
    """So can the one from the bytes on: it tells the settings of a picture."""
    with pytest.raises(AssertionError):
        check_objects_of("c4_attributes", "a", change(family_of("c4_attributes")))


def rgb(weights: Arrays) -> Arrays:
    stem = "backbone.stem.conv1.weight"
    return {**weights, stem: weights[stem][:, ::-1]}


def without_eps(weights: Arrays) -> Arrays:
    return {
        key: array - np.float32(1e-5) if key.endswith("running_var") else array
        for key, array in weights.items()
    }


@pytest.mark.parametrize("change", [rgb, without_eps])
def test_a_wrong_reading_of_the_weights_is_noticed(change: Callable[[Arrays], Arrays]) -> None:
    """So can the one of arrays: it tells a stem of red green blue, and normalisation without the
    small number under its root."""
    wrong, _ = compare_alone("c4", "a", net_of(change(weights_of("c4")), family_of("c4")))
    assert "a_box_features" in wrong
