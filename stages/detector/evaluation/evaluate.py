"""Scores a teacher: AP50 and attribute accuracy on pictures with true boxes.

AP50 is PASCAL VOC's of 2010 and later (Everingham et al., 2015, section 4.2): detections of a
class over all pictures by falling score; one is right when the true box of its class that it
overlaps most is overlapped by at least 0.5 and not yet taken; average precision is the area under
precision made to fall with recall, at every point. AP50 is the mean over the classes that have a
true box.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from stages.detector.evaluation.coco_metrics import coco_scores
from stages.detector.ops.boxes import iou
from stages.detector.predictor import Teacher
from stages.detector.training.labeled_pictures import NO_ATTRIBUTE, LabeledPictures, Truth
from stages.distributed import Ranks
from stages.progress import Progress

LEAST_IOU = 0.5
NUM_COMMONEST = 20  # labels of the score over the commonest
COCO_WORDS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "small", "ap_medium": "medium",
              "ap_large": "large", "ar100": "AR"}  # fmt: skip


def average_precision(found: list[np.ndarray], truths: list[Truth], num_labels: int) -> np.ndarray:
    """AP50 of each label [L], NaN for a label without true boxes.

    found: for each picture a structured array with `box`, `score`, `label` (others are not
    looked at). truths: of the same pictures, boxes in the same pixels.
    """
    scores: list[list[float]] = [[] for _ in range(num_labels)]
    right: list[list[bool]] = [[] for _ in range(num_labels)]
    num_true = np.zeros(num_labels, dtype=np.int64)
    for objects, truth in zip(found, truths):
        num_true += np.bincount(truth.labels.numpy(), minlength=num_labels)
        for label, score, row in zip(objects["label"], objects["score"], match(objects, truth)):
            scores[label].append(float(score))
            right[label].append(row >= 0)
    precision = np.full(num_labels, np.nan)
    for label in np.flatnonzero(num_true):
        order = np.argsort(-np.array(scores[label]), kind="stable")
        hits = np.array(right[label], dtype=bool)[order]
        precision[label] = _area_under_precision(hits, int(num_true[label]))
    return precision


def match(objects: np.ndarray, truth: Truth) -> np.ndarray:
    """For each object (by falling score) the true box it finds [O], or -1."""
    overlap = iou(torch.from_numpy(objects["box"].copy()), truth.boxes).numpy()
    is_taken = np.zeros(len(truth.boxes), dtype=bool)
    rows = np.full(len(objects), -1)
    for index, label in enumerate(objects["label"]):
        of_label = np.where(truth.labels.numpy() == label, overlap[index], -1.0)
        if len(of_label) == 0:
            continue
        nearest = int(of_label.argmax())
        if of_label[nearest] >= LEAST_IOU and not is_taken[nearest]:
            is_taken[nearest], rows[index] = True, nearest
    return rows


def _area_under_precision(hits: np.ndarray, num_true: int) -> float:
    """hits [n]: which detections, by falling score, are right."""
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    return float(falling[hits].sum() / num_true)


def score_teacher(
    teacher: Teacher,
    labelled: LabeledPictures,
    ranks: Ranks = Ranks(),
    *,
    show_progress: bool = True,
) -> dict[str, Any]:
    """AP50 and attribute accuracy as scores.json has them; values are None without true boxes.

    Attribute accuracy: of the true boxes that are found and whose attribute is known, the share
    with the right attribute. The pictures are shared out to the ranks, which all get the scores.
    A collective.
    """
    own = ranks.own(range(len(labelled)))
    detected = []
    is_shown = show_progress and ranks.is_first
    with Progress("score", total=len(own), unit="pictures", show=is_shown) as progress:
        for index in own:
            detected += teacher.detect([teacher.prepare(labelled.picture(index))])
            progress.advance()
    found = ranks.interleaved(detected)
    truths = [labelled.truth(index) for index in range(len(labelled))]
    by_label = average_precision(found, truths, len(teacher.label_names))
    commonest = _commonest(truths, len(by_label))
    return {
        "ap50": _score(_mean(by_label)),
        "ap50_commonest": {
            **_score(_mean(by_label[commonest])),
            "num_labels": len(commonest),
            "by_label": {
                teacher.label_names[label]: None if np.isnan(value) else float(value)
                for label, value in zip(commonest, by_label[commonest])
            },
        },
        "coco": coco_scores(found, truths, len(teacher.label_names)),
        "attribute_accuracy": _score(
            _attribute_accuracy(found, truths) if teacher.attribute_names else None
        ),
        "ap50_by_label": {
            name: None if np.isnan(value) else float(value)
            for name, value in zip(teacher.label_names, by_label)
        },
        "num_pictures": len(labelled),
        "num_objects": sum(len(truth.labels) for truth in truths),
        "convention": "AP at IoU 0.5, all-point interpolation (PASCAL VOC 2010), mean over the "
        "labels that occur",
    }


def scores_in_words(scores: dict[str, Any]) -> list[str]:
    """Lines for the screen: COCO's scores where pycocotools is installed, else AP50, and AP50 of
    the commonest labels; none without true boxes."""
    coco, lines = scores["coco"], []
    if coco is not None:
        parts = [f"{said} {_percent(coco[name])}" for name, said in COCO_WORDS.items()]
        lines.append(f"COCO: {', '.join(parts)}")
    if scores["ap50"]["value"] is not None:
        commonest = scores["ap50_commonest"]
        lines.append(
            f"AP50 {_percent(scores['ap50']['value'])}, of the {commonest['num_labels']} commonest "
            f"labels {_percent(commonest['value'])}: "
            + ", ".join(f"{k} {_percent(v)}" for k, v in commonest["by_label"].items())
        )
        if coco is None:
            lines.append("COCO's AP by size and AR: pip install pycocotools")
    return lines


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _mean(by_label: np.ndarray) -> float | None:
    """Of the labels [n] that occur, whose precision is no NaN."""
    known = by_label[~np.isnan(by_label)]
    return float(known.mean()) if len(known) else None


def _commonest(truths: list[Truth], num_labels: int) -> np.ndarray:
    """The labels with most true boxes, at most NUM_COMMONEST; of equal ones the first."""
    counts = np.zeros(num_labels, dtype=np.int64)
    for truth in truths:
        counts += np.bincount(truth.labels.numpy(), minlength=num_labels)
    return np.argsort(-counts, kind="stable")[:NUM_COMMONEST]


def _score(value: float | None) -> dict[str, float | None]:
    """Neither score has a sensible chance level; who has a baseline fills it in."""
    return {"value": value, "chance": None, "baseline": None}


def _attribute_accuracy(found: list[np.ndarray], truths: list[Truth]) -> float | None:
    num_right = num_known = 0
    for objects, truth in zip(found, truths):
        rows = match(objects, truth)
        predicted, wanted = (
            objects["attribute"][rows >= 0],
            truth.attributes.numpy()[rows[rows >= 0]],
        )
        is_known = wanted != NO_ATTRIBUTE
        num_right += int((predicted == wanted)[is_known].sum())
        num_known += int(is_known.sum())
    return num_right / num_known if num_known else None
