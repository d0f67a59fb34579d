"""COCO's detection scores by pycocotools, which is optional.

AP is the mean over IoU 0.50 to 0.95, classes and 101 recalls; small, medium and large are areas
below 32 x 32, up to 96 x 96 and above, in pixels of the original pictures
(https://cocodataset.org/#detection-eval).
"""

from __future__ import annotations

import contextlib
import io
from importlib.util import find_spec
from typing import Any

import numpy as np

from stages.detector.training.labeled_pictures import Truth

# In the order of pycocotools' summary.
SCORES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100",
          "ar_small", "ar_medium", "ar_large")  # fmt: skip


def coco_scores(
    found: list[np.ndarray], truths: list[Truth], num_labels: int
) -> dict[str, float | None] | None:
    """COCO's twelve scores, each None where no true box counts for it; None without pycocotools.

    found: for each picture a structured array with `box`, `score`, `label`. truths: of the same
    pictures, boxes in the same pixels.
    """
    if find_spec("pycocotools") is None or not any(len(truth.labels) for truth in truths):
        return None
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    detections = [row for number, objects in enumerate(found) for row in _rows(number, objects)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = _dataset(truths, num_labels)
        truth.createIndex()
        results = COCO()
        results.dataset = {**truth.dataset, "annotations": detections}
        results.createIndex()
        evaluation = COCOeval(truth, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = [float(value) for value in evaluation.stats]
    return {name: None if value < 0 else value for name, value in zip(SCORES, values)}


def _rows(number: int, objects: np.ndarray) -> list[dict[str, Any]]:
    """The objects of picture `number` as COCO's results."""
    return [
        {**_annotation(box, int(label), number), "id": number * 100_000 + row + 1,
         "score": float(score)}
        for row, (box, label, score) in enumerate(
            zip(objects["box"].tolist(), objects["label"], objects["score"]))
    ]  # fmt: skip


def _dataset(truths: list[Truth], num_labels: int) -> dict[str, Any]:
    """The truth as COCO's instances file has it, pictures numbered from 0, ids from 1 (an id of 0
    counts as no match in pycocotools)."""
    annotations = [
        _annotation(box, label, number)
        for number, truth in enumerate(truths)
        for box, label in zip(truth.boxes.tolist(), truth.labels.tolist())
    ]
    return {
        "images": [{"id": number} for number in range(len(truths))],
        "categories": [{"id": label} for label in range(num_labels)],
        "annotations": [{**row, "id": number + 1} for number, row in enumerate(annotations)],
    }


def _annotation(box: list[float], label: int, number: int) -> dict[str, Any]:
    """One box x0, y0, x1, y1 of picture `number`."""
    x0, y0, x1, y1 = box
    return {
        "image_id": number,
        "category_id": label,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0),
        "iscrowd": 0,
    }
