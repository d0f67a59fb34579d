"""Converts a record to the objects array of a picture, or says why it does not fit.

O: objects, D: values of a feature, K: classes of the soft label.
"""

from __future__ import annotations

import math

import numpy as np

from stages.distill.precomputed.formats.record import Record, RowError

BOX_TOLERANCE = 0.01
"""How far, as a share of the picture's longer side, a box may reach over its border before the
record is taken for another picture's. Nearer ones are cut at the border: detectors round, and
half precision knows a place in 1000 pixels to half a pixel."""
SIZE_TOLERANCE_PX = 1.0
"""How far a side may be from the other one, scaled: resizing rounds both."""
_LARGEST_HALF = 65504.0


def to_objects(
    record: Record,
    *,
    width: int,
    height: int,
    dtype: np.dtype,
    num_labels: int,
    num_attributes: int,
) -> np.ndarray:
    """Array [O] of `dtype` (sharding.format.schema.object_dtype), rows by falling score.

    Boxes go to pixels of the picture of `width` x `height`, scaled where the features were made
    from another size of it. They keep the file's own convention: py-faster-rcnn's and
    maskrcnn_benchmark's x1 and y1 are the last pixel inside, so such boxes are up to a pixel of the
    resized picture narrower than detectron2's. Features beyond half precision become its largest
    number. Raises RowError, naming what does not fit.
    """
    num = len(record.boxes)
    boxes = _boxes(record, width, height)
    scores = _finite(record.scores, (num,), "scores")
    if num and not (-1e-3 <= scores.min() and scores.max() <= 1.001):
        raise RowError(f"scores: {scores.min():.4g} to {scores.max():.4g}, expected 0 to 1")
    objects = np.zeros(num, dtype)
    objects["box"] = boxes
    objects["score"] = scores.clip(0, 1)
    probabilities = record.probabilities
    if probabilities is not None:  # another number of classes is another vocabulary
        probabilities = _finite(probabilities, (num, num_labels), "class probabilities")
    labels = _places(record.labels, num, num_labels, "labels", least=0)
    objects["label"] = labels
    objects["top_label"], objects["top_score"] = _soft_labels(
        probabilities, labels, scores, dtype["top_label"].shape[0]
    )
    objects["feature"] = _features(record, dtype["feature"].shape[0])
    if "attribute" in (dtype.names or ()):
        if record.attributes is None or record.attribute_scores is None:
            raise RowError("attributes: none in it; set distill.features.attributes to null")
        objects["attribute"] = _places(
            record.attributes, num, num_attributes, "attributes", least=-1
        )
        attribute_scores = _finite(record.attribute_scores, (num,), "attribute scores")
        objects["attribute_score"] = attribute_scores.clip(0, 1)
    # By the halves that are written, so that their order is what readers check; stable.
    return objects[np.argsort(-objects["score"], kind="stable")]


def _boxes(record: Record, width: int, height: int) -> np.ndarray:
    """[O, 4] float32 inside the picture."""
    boxes = _finite(record.boxes, (len(record.boxes), 4), "boxes").astype(np.float64)
    boxes *= _scale(record, width, height)
    tolerance_px = BOX_TOLERANCE * max(width, height)
    sides = np.array([width, height, width, height], np.float64)
    outside = ((boxes < -tolerance_px) | (boxes > sides + tolerance_px)).any(axis=1)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise RowError(
            f"boxes: {_shown(boxes[row])} outside the picture of {width} x {height} pixels "
            f"({int(outside.sum())} of {len(boxes)} are)"
        )
    boxes = boxes.clip(0, sides).astype(np.float32)
    turned = (boxes[:, :2] > boxes[:, 2:]).any(axis=1)
    if turned.any():
        row = int(np.flatnonzero(turned)[0])
        raise RowError(f"boxes: {_shown(boxes[row])}, expected x0 <= x1 and y0 <= y1")
    return boxes


def _scale(record: Record, width: int, height: int) -> np.ndarray:
    """[4] what takes the record's boxes to pixels of our picture."""
    if record.are_shares:
        return np.array([width, height, width, height], np.float64)
    if record.size_px is None or record.size_px == (width, height):
        return np.ones(4)
    theirs = record.size_px
    if min(theirs) < 1:
        raise RowError(f"size: {theirs[0]} x {theirs[1]} pixels, expected a picture")
    scale = math.sqrt(theirs[0] * theirs[1] / (width * height))
    off = max(abs(width * scale - theirs[0]), abs(height * scale - theirs[1]))
    if off > SIZE_TOLERANCE_PX:
        turned = ", which is the picture rotated by 90 degrees" if theirs == (height, width) else ""
        raise RowError(
            f"size: made from {theirs[0]} x {theirs[1]} pixels{turned}, the picture has "
            f"{width} x {height}: another shape, so another picture or a cut one"
        )
    x, y = width / theirs[0], height / theirs[1]
    return np.array([x, y, x, y])


def _features(record: Record, size: int) -> np.ndarray:
    """[O, D] float32 within half precision; zeros where the file is said to have none."""
    num = len(record.boxes)
    if record.features is None:
        return np.zeros((num, size), np.float32)
    if record.features.ndim == 2 and len(record.features) == num and num:
        if record.features.shape[1] != size:
            raise RowError(
                f"features: {record.features.shape[1]} values each, expected {size} "
                "(distill.features.feature_size)"
            )
    elif num == 0 and record.features.size == 0:
        return np.zeros((0, size), np.float32)
    features = _finite(record.features, (num, size), "features")
    return features.clip(-_LARGEST_HALF, _LARGEST_HALF)


def _soft_labels(
    probabilities: np.ndarray | None, labels: np.ndarray, scores: np.ndarray, num_top: int
) -> tuple[np.ndarray, np.ndarray]:
    """([O, K] the best classes, [O, K] their probabilities)."""
    if num_top == 1:
        return labels[:, None], scores[:, None].clip(0, 1)
    if probabilities is None:
        raise RowError("class probabilities: none in it; set distill.features.num_top to 1")
    top = np.argsort(-probabilities, axis=1, kind="stable")[:, :num_top]
    return top, np.take_along_axis(probabilities, top, 1).clip(0, 1)


def _finite(array: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    """`array` as float32, or RowError unless it is of that shape and all finite."""
    if array.shape != shape:
        raise RowError(f"{name}: shape {array.shape}, expected {shape}")
    with np.errstate(over="ignore"):
        numbers = array.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise RowError(f"{name}: NaN or infinite")
    return numbers


def _places(array: np.ndarray, num: int, num_names: int, name: str, *, least: int) -> np.ndarray:
    """`array` [O] of whole numbers, or RowError unless each is `least` up to the last name's."""
    if array.shape != (num,) or array.dtype.kind not in "iu":
        raise RowError(f"{name}: {array.dtype} {array.shape}, expected {num} whole numbers")
    if num and not (least <= array.min() and array.max() < num_names):
        worst = array.max() if array.max() >= num_names else array.min()
        raise RowError(f"{name}: number {worst}, expected {least} to {num_names - 1}")
    return array


def _shown(box: np.ndarray) -> str:
    return "[" + ", ".join(f"{number:.1f}" for number in box) + "]"
