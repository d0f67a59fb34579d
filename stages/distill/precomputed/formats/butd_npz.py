"""A folder with a .npz a picture, as MILVLG/bottom-up-attention.pytorch writes them.

Both modes of that project at commit 4dbce869: "caffe" (utils/extract_utils.py: save_roi_features,
save_roi_features_by_bbox) and "d2" (utils/extract_d2features.py: model_inference). Of each file are
read `x` [N, D], `bbox` [N, 4] xyxy in pixels of the original picture, `num_bbox`, `image_h`,
`image_w`, and `info`, a pickled dict: caffe's has objects_id, objects_conf and perhaps attrs_id,
attrs_conf (classes and attributes are 0-based lines of the vocabularies, the background left out);
d2's has objects, cls_prob [N, C] (background left out) and perhaps attrs_id, probabilities [N, A].
The pickle is read by `stages.detector.checkpoints.pickles`, which runs no code in it.

Boxes of caffe's mode are proposals of py-faster-rcnn: x1 and y1 are the last pixel inside.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sharding.writing.atomic import sha256_of
from stages.detector.checkpoints.pickles import loads
from stages.distill.precomputed.config import FeaturesConfig
from stages.distill.precomputed.formats.arrays import read_npz
from stages.distill.precomputed.formats.record import FeaturesError, Record, RowError
from stages.distill.precomputed.ids import rule_of
from stages.distill.precomputed.index import Place, index_names

MAX_FILE_BYTES = 1 << 28
ENDING = ".npz"
_ARRAYS = ("x", "bbox", "num_bbox", "image_h", "image_w", "info")


class ButdNpz:
    """The .npz files of a folder and its subfolders; a file's id is its name without the ending.

    Its fingerprint is over names and sizes of the files, not over their content.
    """

    is_row_a_picture = True

    def __init__(self, config: FeaturesConfig) -> None:
        self._root = Path(config.path)
        files = sorted(_list(self._root))
        if not files:
            raise FeaturesError(
                f"path is {config.path!r}, with no {ENDING} file in it; expected the folder that "
                "bottom-up-attention.pytorch wrote"
            )
        self._names = [name for name, _ in files]
        stems = [Path(name).name.removesuffix(ENDING) for name in self._names]
        self.index = index_names(stems, rule=rule_of(config), signature=_signature(files))
        self.fingerprint = self.index.fingerprint

    def id_at(self, place: Place) -> str:
        """The file's name without its ending."""
        return Path(self._names[place.offset]).name.removesuffix(ENDING)

    def read(self, places: Sequence[Place]) -> Record:
        """The record in the file at the one place; RowError where it is not valid."""
        (place,) = places
        data = _bytes_of(self._root / self._names[place.offset])
        found = read_npz(data, _ARRAYS, read_object={"info": _read_info})
        for name in ("x", "bbox", "info"):
            if name not in found:
                has = ", ".join(found) or "nothing"
                raise RowError(f"{name}: not in the file, which has {has}")
        info = found["info"]
        if not isinstance(info, dict):
            raise RowError("info: an array of numbers, expected a dict")
        shape = found["bbox"].shape
        num = shape[0] if shape else 0
        if "num_bbox" in found:
            num = _number(found["num_bbox"], "num_bbox")
        if shape != (num, 4):
            raise RowError(f"bbox: shape {shape}, expected {num} boxes of 4")
        size_px = None
        if "image_w" in found and "image_h" in found:
            size_px = (_number(found["image_w"], "image_w"), _number(found["image_h"], "image_h"))
        classes = _from_d2(info) if "cls_prob" in info else _from_caffe(info)
        return Record(
            id=self.id_at(place),
            boxes=found["bbox"],
            features=found["x"],
            size_px=size_px,
            **classes,
        )


def _list(root: Path) -> list[tuple[str, int]]:
    """(name relative to `root`, size in bytes) of all .npz files."""
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            if name.endswith(ENDING):
                path = Path(folder) / name
                found.append((str(path.relative_to(root)), path.stat().st_size))
    return found


def _signature(files: list[tuple[str, int]]) -> str:
    return sha256_of([[os.fsencode(name).decode("latin-1"), size] for name, size in files])


def _bytes_of(path: Path) -> bytes:
    try:
        with open(path, "rb") as source:
            data = source.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise RowError(f"{path.name}: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise RowError(f"{path.name}: more than {MAX_FILE_BYTES} bytes, more than any picture's")
    return data


def _read_info(data: bytes) -> dict[str, Any]:
    try:
        content = loads(data, where="info")
    except ValueError as error:
        raise RowError(str(error).splitlines()[0][:300]) from None
    content = content.item() if isinstance(content, np.ndarray) and content.ndim == 0 else content
    if not isinstance(content, dict):
        raise RowError(f"info: a {type(content).__name__}, expected a dict")
    return content


def _from_caffe(info: dict[str, Any]) -> dict[str, Any]:
    """Record's fields out of the info of caffe's mode: the best class alone."""
    classes = {"labels": _array(info, "objects_id"), "scores": _array(info, "objects_conf")}
    if "attrs_id" in info:
        classes["attributes"] = _array(info, "attrs_id")
        classes["attribute_scores"] = _array(info, "attrs_conf")
    return classes


def _from_d2(info: dict[str, Any]) -> dict[str, Any]:
    """Record's fields out of the info of d2's mode: all classes, all attributes.

    With boxes given (bbox_feats) `objects` may be the background, whose number is that of the
    classes; such a box goes to its best class.
    """
    probabilities, labels = _array(info, "cls_prob"), _array(info, "objects")
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise RowError(f"cls_prob: shape {probabilities.shape} of {labels.shape} objects")
    if labels.dtype.kind not in "iu":
        raise RowError(f"objects: {labels.dtype}, expected whole numbers")
    num_classes = probabilities.shape[1]
    if len(labels):
        labels = np.where(labels == num_classes, probabilities.argmax(1), labels)
        if not (0 <= labels.min() and labels.max() < num_classes):
            raise RowError(f"objects: number {labels.max()}, expected 0 to {num_classes}")
    rows = np.arange(len(labels))
    classes = {
        "labels": labels,
        "probabilities": probabilities,
        "scores": probabilities[rows, labels],
    }
    if "attrs_id" in info:
        attributes = _array(info, "attrs_id")
        if attributes.ndim != 2 or len(attributes) != len(labels) or not attributes.shape[1]:
            raise RowError(f"attrs_id: shape {attributes.shape} of {len(labels)} objects")
        classes["attributes"] = attributes.argmax(1)
        classes["attribute_scores"] = attributes.max(1)
    return classes


def _array(info: dict[str, Any], name: str) -> np.ndarray:
    array = info.get(name)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
        got = "nothing" if array is None else type(array).__name__
        raise RowError(f"info.{name}: {got}, expected an array of numbers")
    return array


def _number(value: Any, name: str) -> int:
    array = np.asarray(value)
    if array.shape != () or array.dtype.kind not in "iu":
        raise RowError(f"{name}: {array.dtype} {array.shape}, expected a whole number")
    return int(array)
