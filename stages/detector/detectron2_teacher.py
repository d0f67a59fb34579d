"""A teacher that runs detectron2: its net detects objects, this file converts them.

Any Faster, Mask, Keypoint or Cascade R-CNN of detectron2 goes: only the parts that lead to boxes
run, by the steps of its `GeneralizedRCNN.inference` and the `forward` of its heads
(https://github.com/facebookresearch/detectron2, detectron2/modeling/meta_arch/rcnn.py and
roi_heads/), because those throw away which proposal a detection comes from, and features are the
proposal's. `predictor.py` documents the rows of the arrays; stock detectron2 has no
attributes. A cascade's feature is its last stage's, its scores are the mean of its stages'.

Each picture runs alone: detectron2 pads pictures of unequal size, which moves their features.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boxless.errors import BoxlessError
from sharding.format.schema import object_dtype
from sharding.writing.atomic import sha256_file, sha256_of
from stages.detector.checkpoints.checkpoint_error import CheckpointError
from stages.detector.checkpoints.names_file import read_names
from stages.detector.detectron2_config import Detectron2Config
from stages.detector.detectron2_net import (
    Detectron2Error,
    Detectron2Net,
    find_detectron2,
    load_net,
)
from stages.detector.ops.boxes import NOT_FINITE
from stages.detector.ops.resize import Prepared

LARGEST_HALF = float(np.finfo(np.float16).max)


class Detectron2Teacher:
    """A detector of detectron2, as distillation needs it.

    label_names: by number. feature_size: D, what the box predictor takes. num_top: K.
    fingerprint: names config, weights and labels.
    """

    attribute_names: Sequence[str] = ()

    def __init__(
        self, net: Detectron2Net, *, label_names: list[str], num_top: int, fingerprint: str
    ) -> None:
        self._net = net
        self.label_names, self.fingerprint = label_names, fingerprint
        self.num_top = min(num_top, len(label_names))
        self.feature_size = int(_stages(net.model.roi_heads)[-1][1].cls_score.in_features)

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """That of the picture itself, as each one runs alone."""
        return height, width

    def prepare(self, picture: Tensor) -> Prepared:
        """A picture, uint8 RGB [H, W, 3], resized by detectron2."""
        pixels = picture.numpy()
        # Copied, as Pillow's result is read-only, of which torch warns.
        pixels = np.array(self._net.resizing.get_transform(pixels).apply_image(pixels))
        height, width = picture.shape[:2]
        return Prepared(
            torch.from_numpy(pixels),
            height,
            width,
            (pixels.shape[1] / width, pixels.shape[0] / height),
        )

    @torch.no_grad()
    def detect(self, prepared: list[Prepared]) -> list[np.ndarray]:
        """Objects of each picture, boxes in pixels of the original one, rows by falling score.

        Raises ValueError where the net's numbers are not finite.
        """
        return [self._detect(picture) for picture in prepared]

    def _detect(self, picture: Prepared) -> np.ndarray:
        model = self._net.model
        pixels = picture.pixels.permute(2, 0, 1).float()
        if self._net.channels == "BGR":
            pixels = pixels.flip(0)
        images = model.preprocess_image([{"image": pixels}])
        levels = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, levels, None)
        features, probabilities, instances = _look(model.roi_heads, levels, proposals[0])
        postprocess = importlib.import_module("detectron2.modeling.postprocessing")
        found = postprocess.detector_postprocess(instances, picture.height, picture.width)
        array = np.zeros(
            len(found),
            object_dtype(feature_size=self.feature_size, num_top=self.num_top, attributes=False),
        )
        top = torch.sort(probabilities[found.proposal][:, :-1], dim=1, descending=True, stable=True)
        array["box"] = found.pred_boxes.tensor.cpu().numpy()
        array["score"] = found.scores.cpu().numpy()
        array["label"] = found.pred_classes.cpu().numpy()
        array["feature"] = features[found.proposal].clamp(max=LARGEST_HALF).cpu().numpy()
        array["top_label"] = top.indices[:, : self.num_top].cpu().numpy()
        array["top_score"] = top.values[:, : self.num_top].cpu().numpy()
        return array


def load_detectron2(config: Detectron2Config, device: torch.device) -> Detectron2Teacher:
    """The teacher of the recipe's `distill.detectron2`.

    Raises Detectron2Error where detectron2 is not here or what it is given does not fit.
    """
    find_detectron2()
    net = load_net(config, device)
    names = _label_names(config, net)
    expected = int(net.model.roi_heads.num_classes)
    if len(names) != expected:
        raise Detectron2Error(
            f"labels: got {len(names)} names from {config.labels or net.dataset}, expected "
            f"{expected}, the classes of {config.config_file}; name a file with one a line."
        )
    fingerprint = sha256_of(
        {
            "config": net.config,
            "weights": sha256_file(Path(config.weights)),
            "labels": names,
            "num_top": config.num_top,
        }
    )
    return Detectron2Teacher(
        net, label_names=names, num_top=config.num_top, fingerprint=fingerprint
    )


def _label_names(config: Detectron2Config, net: Detectron2Net) -> list[str]:
    """The classes' names: the recipe's file, or what detectron2 knows of its data sets."""
    if config.labels is not None:
        try:
            return read_names(Path(config.labels))
        except CheckpointError as error:
            raise Detectron2Error(f"labels: {error}") from error
    catalog = importlib.import_module("detectron2.data").MetadataCatalog
    names = catalog.get(net.dataset).get("thing_classes") if net.dataset else None
    if not names:
        raise Detectron2Error(
            f"labels: got null, expected a text file with one class a line, as detectron2 has no "
            f"names of {config.config_file}'s test data set, {net.dataset}."
        )
    return list(names)


def _stages(heads: Any) -> list[tuple[Any, Any]]:
    """Box head and box predictor of each stage; one unless the net is a cascade."""
    if hasattr(heads, "res5"):
        return [(lambda pooled: heads.res5(pooled).mean(dim=[2, 3]), heads.box_predictor)]
    if isinstance(heads.box_predictor, torch.nn.ModuleList):
        return list(zip(heads.box_head, heads.box_predictor))
    return [(heads.box_head, heads.box_predictor)]


def _look(heads: Any, levels: dict[str, Tensor], proposals: Any) -> tuple[Tensor, Tensor, Any]:
    """What the heads make of one picture's P proposals (detectron2's Instances).

    Features [P, D], probabilities [P, L + 1], background last, and the detections, Instances
    whose field `proposal` holds the row of the proposal that each comes from.
    """
    fast_rcnn = importlib.import_module("detectron2.modeling.roi_heads.fast_rcnn")
    structures = importlib.import_module("detectron2.structures")
    pooler = heads.pooler if hasattr(heads, "res5") else heads.box_pooler
    maps = [levels[name] for name in heads.in_features]
    stages = _stages(heads)
    boxes = proposals.proposal_boxes.tensor
    total = torch.zeros(1, device=boxes.device)
    for head, predictor in stages:
        # A cascade's later stages take the boxes of the one before.
        refined = structures.Boxes(boxes)
        refined.clip(proposals.image_size)
        proposals = structures.Instances(proposals.image_size, proposal_boxes=refined)
        features = head(pooler(maps, [proposals.proposal_boxes]))
        predictions = predictor(features)
        boxes = predictor.predict_boxes(predictions, [proposals])[0]
        total = total + predictor.predict_probs(predictions, [proposals])[0]
    probabilities = total * (1.0 / len(stages))
    if not (torch.isfinite(boxes).all() and torch.isfinite(probabilities).all()):
        # detectron2 drops such rows before it counts them, and they would be another's.
        raise BoxlessError(NOT_FINITE)
    (instances,), (rows,) = fast_rcnn.fast_rcnn_inference(
        [boxes],
        [probabilities],
        [proposals.image_size],
        predictor.test_score_thresh,
        predictor.test_nms_thresh,
        predictor.test_topk_per_image,
    )
    instances.proposal = rows
    return features, probabilities, instances
