"""Our Faster R-CNN beside detectron2's on photographs: same weights, same decisions.

    BOXLESS_PHOTOGRAPHS=FOLDER python -m pytest -s
    tests/stages/detector/model/test_teacher_beside_detectron2.py

Runs where detectron2 is importable. Small nets always; full-size ones, minutes each, on the
photographs of a folder that the variable names. Each line printed gives the largest differences.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from detectron2_nets import LABELS, photograph, write_config
from PIL import Image
from torch import Tensor

from benchmarks.detector.detector_weights import make_weights
from stages.detector.checkpoints.families import DETECTRON2
from stages.detector.checkpoints.weights import num_names, read_net
from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.ops.boxes import clip, is_nonempty
from stages.detector.ops.resize import prepare, stack

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("detectron2") is None, reason="detectron2 is not installed"
)

NUM_LABELS = 1600
TOLERANCE = 1e-4
FULL_SIZE = [  # depth, pyramid, shorter and longer side
    (50, False, 600, 1000),
    (101, False, 600, 1000),
    (101, False, 800, 1333),
    (50, True, 800, 1333),
    (101, True, 800, 1333),
]
FOLDER = os.environ.get("BOXLESS_PHOTOGRAPHS", "")


class Objects(NamedTuple):
    """What a net finds in one picture, in pixels of that picture, single precision."""

    boxes: np.ndarray  # [O, 4]
    scores: np.ndarray  # [O], falling
    labels: np.ndarray  # [O]
    features: np.ndarray  # [O, D]


def find_ours(model: FasterRCNN, picture: Tensor) -> Objects:
    """A picture uint8 RGB [H, W, 3] through our net."""
    prepared = prepare(picture, model.config.picture)
    batch = stack([prepared.pixels], model.config.picture, torch.device("cpu"))
    (found,) = model.find(batch, [prepared.size])
    height, width = picture.shape[:2]
    scale = torch.tensor([width / prepared.size[1], height / prepared.size[0]] * 2)
    boxes = clip(found.boxes * scale, (height, width))
    keep = is_nonempty(boxes)
    return Objects(
        *(part[keep].numpy() for part in (boxes, found.scores, found.labels, found.features))
    )


def find_theirs(model: Any, cfg: Any, picture: Tensor, monkeypatch: pytest.MonkeyPatch) -> Objects:
    """The same through detectron2's forward; features and their rows are caught on the way."""
    import detectron2.data.transforms as transforms
    from detectron2.modeling.roi_heads import fast_rcnn

    caught: dict[str, Any] = {}
    infer = fast_rcnn.fast_rcnn_inference

    def catch_rows(*given: Any) -> Any:
        instances, caught["rows"] = infer(*given)
        instances[0].row = caught["rows"][0]
        return instances, caught["rows"]

    def catch_features(module: Any, given: tuple[Tensor, ...]) -> None:
        (caught["features"],) = given

    monkeypatch.setattr(fast_rcnn, "fast_rcnn_inference", catch_rows)
    hook = model.roi_heads.box_predictor.register_forward_pre_hook(catch_features)
    pixels = np.ascontiguousarray(picture.numpy()[:, :, ::-1])
    resizing = transforms.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    resized = resizing.get_transform(pixels).apply_image(pixels)
    image = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
    with torch.no_grad():
        found = model([{"image": image, "height": pixels.shape[0], "width": pixels.shape[1]}])
    hook.remove()
    monkeypatch.setattr(fast_rcnn, "fast_rcnn_inference", infer)
    found = found[0]["instances"]
    return Objects(
        found.pred_boxes.tensor.numpy(),
        found.scores.numpy(),
        found.pred_classes.numpy(),
        caught["features"][found.row].numpy(),
    )


def make_both(
    folder: Path,
    *,
    depth: int,
    has_pyramid: bool,
    width: int,
    num_labels: int,
    shorter_px: int,
    longer_px: int,
    more: str = "",
) -> tuple[FasterRCNN, Any, Any]:
    """Our net, detectron2's with the same weights, and its config."""
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    weights = make_weights(
        torch.from_numpy(photograph()),
        depth=depth,
        has_pyramid=has_pyramid,
        num_labels=num_labels,
        width=width,
    )
    base = f"COCO-Detection/faster_rcnn_R_{depth}_{'FPN' if has_pyramid else 'C4'}_3x.yaml"
    cfg = get_cfg()
    cfg.merge_from_file(
        str(
            write_config(
                folder,
                base,
                f"""
MODEL:
  RESNETS: {{STEM_OUT_CHANNELS: {width}, RES2_OUT_CHANNELS: {width * 4}, WIDTH_PER_GROUP: {width}}}
  FPN: {{OUT_CHANNELS: {width * 4}}}
  ROI_BOX_HEAD: {{FC_DIM: {width * 16}}}
  ROI_HEADS: {{NUM_CLASSES: {num_labels}}}
  RPN: {{POST_NMS_TOPK_TEST: 1000}}
INPUT: {{MIN_SIZE_TEST: {shorter_px}, MAX_SIZE_TEST: {longer_px}}}
""",
            )
        )
    )
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    theirs = build_model(cfg).eval()
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    family = dataclasses.replace(
        DETECTRON2,
        picture=dataclasses.replace(DETECTRON2.picture, shorter_px=shorter_px, longer_px=longer_px),
    )
    config, state = read_net(weights, family)
    labels, attributes = num_names(config, state)
    ours = FasterRCNN(config, num_labels=labels, num_attributes=attributes).eval()
    ours.load_state_dict(state)
    return ours, theirs, cfg


def compare(name: str, ours: Objects, theirs: Objects) -> None:
    """Asserts the same decisions, boxes within 0.05 px, scores and features within 1e-4 of their
    size; prints the largest differences.

    Objects whose scores differ by less than that are equally good, so they may change places.
    """
    assert len(theirs.labels) > 10, "too few objects to compare anything"
    assert len(ours.labels) == len(theirs.labels)
    apart = np.abs(theirs.boxes[:, None] - ours.boxes).max(2)
    apart[theirs.labels[:, None] != ours.labels] = np.inf
    row = apart.argmin(1)  # of ours, for each of theirs
    moved = row != np.arange(len(row))
    assert sorted(row) == list(range(len(row)))
    box = apart.min(1).max()
    score = (np.abs(ours.scores[row] - theirs.scores) / theirs.scores).max()
    size = np.abs(theirs.features).max(1, keepdims=True)
    feature = (np.abs(ours.features[row] - theirs.features) / size).max()
    print(
        f"{name}: {len(row)} objects of {len(set(theirs.labels))} classes, {moved.sum()} in "
        f"another place, boxes {box:.1e} px, scores {score:.1e}, features {feature:.1e}"
    )
    assert box < 0.05 and score < TOLERANCE and feature < TOLERANCE
    assert (np.abs(ours.scores - theirs.scores) <= TOLERANCE * theirs.scores)[moved].all()


@pytest.mark.parametrize("has_pyramid", [False, True], ids=["C4", "FPN"])
def test_small_nets_decide_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_pyramid: bool
) -> None:
    """Oracle: detectron2's forward on parts of a photograph, of several sizes."""
    ours, theirs, cfg = make_both(
        tmp_path,
        depth=50,
        has_pyramid=has_pyramid,
        width=8,
        num_labels=len(LABELS),
        shorter_px=160,
        longer_px=280,
    )
    picture = photograph()
    for name, part in (
        ("whole", picture),
        ("face", picture[50:350, 100:400]),
        ("wide", picture[200:380]),
        ("tall", picture[:, 200:300]),
    ):
        tensor = torch.from_numpy(part.copy())
        compare(name, find_ours(ours, tensor), find_theirs(theirs, cfg, tensor, monkeypatch))


def photographs() -> Iterator[tuple[str, Tensor]]:
    for path in sorted(Path(FOLDER).iterdir()):
        with Image.open(path) as image:
            yield path.name, torch.from_numpy(np.array(image.convert("RGB")))


@pytest.mark.skipif(not FOLDER, reason="BOXLESS_PHOTOGRAPHS names no folder of photographs")
@pytest.mark.parametrize("depth, has_pyramid, shorter_px, longer_px", FULL_SIZE)
def test_full_size_nets_decide_alike(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    depth: int,
    has_pyramid: bool,
    shorter_px: int,
    longer_px: int,
) -> None:
    """Oracle: detectron2's forward, 1600 classes, 1000 proposals, on every photograph."""
    ours, theirs, cfg = make_both(
        tmp_path,
        depth=depth,
        has_pyramid=has_pyramid,
        width=64,
        num_labels=NUM_LABELS,
        shorter_px=shorter_px,
        longer_px=longer_px,
    )
    for name, picture in photographs():
        compare(
            f"R{depth}-{'FPN' if has_pyramid else 'C4'} {shorter_px}/{longer_px} {name}",
            find_ours(ours, picture),
            find_theirs(theirs, cfg, picture, monkeypatch),
        )
