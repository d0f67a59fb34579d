"""VinVL's tab-separated rows of JSON, and those that Oscar splits into features and predictions.

Alone, `path` has rows of microsoft/scene_graph_benchmark (maskrcnn_benchmark/engine/inference.py:
convert_predictions_to_tsv): id and {"objects": [{"rect": xyxy, "class": name, "conf": number,
"feature": base64 of f4 [D], and perhaps "attributes": [names], "attr_scores": [numbers],
"scores_all": base64 of f4 [C + 1], background first}]}. With `predictions`, whose rows are such a
dict without features, perhaps with image_w and image_h, or a bare list of objects, `path` has rows
of microsoft/Oscar: id, number of boxes, base64 of f4 [N, D] (features.tsv, VinVL_DOWNLOAD.md,
oscar/datasets/oscar_tsv.py), or id and {"num_boxes": N, "features": base64} (feature.tsv,
oscar/run_captioning.py). The features there end in 6 values of the box's place (2054 in all), which
are left out.

Boxes are in pixels of the original picture; maskrcnn_benchmark's x1 and y1 are the last pixel
inside. A .lineidx beside a file is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sharding.writing.atomic import sha256_of
from stages.distill.precomputed.config import FeaturesConfig
from stages.distill.precomputed.formats.arrays import from_base64, numbers
from stages.distill.precomputed.formats.record import FeaturesError, Record, RowError
from stages.distill.precomputed.formats.tsv import TsvFiles, whole_number
from stages.distill.precomputed.ids import rule_of
from stages.distill.precomputed.index import Place
from stages.distill.precomputed.names import BACKGROUND, Names
from stages.json_text import parse_json

NUM_PLACE_VALUES = 6


class VinvlTsv:
    """Rows of either layout, with or without a second file."""

    is_row_a_picture = True

    def __init__(
        self,
        config: FeaturesConfig,
        labels: Names,
        attributes: Names | None,
        *,
        folder: Path | None,
        show: bool,
    ) -> None:
        self._config, self._labels, self._attributes = config, labels, attributes
        self._rule = rule_of(config)
        self._rows = TsvFiles(config.path, config, field="path", folder=folder, show=show)
        self._predictions = (
            TsvFiles(config.predictions, config, field="predictions", folder=folder, show=show)
            if config.predictions is not None
            else None
        )
        self.index = self._rows.index
        self.id_at = self._rows.id_at
        files = [self._rows, self._predictions] if self._predictions else [self._rows]
        self.fingerprint = sha256_of([file.index.fingerprint for file in files])
        first = self._rows.first_rows()
        if first and self._predictions is None and not any(map(_has_objects, first)):
            raise FeaturesError(
                f"predictions is null, but the rows of {config.path} have no boxes and classes; "
                "expected Oscar's predictions.tsv or label.tsv, of the same pictures"
            )

    def read(self, places: Sequence[Place]) -> Record:
        """The record of the one row, and of its predictions; RowError where one is not valid."""
        (place,) = places
        identity, fields = self._rows.row(place)
        if self._predictions is None:
            said = _parse(fields[0], "predictions")
            objects = _objects(said)
            features = self._own_features(objects)
        else:
            said = self._prediction(identity)
            objects = _objects(said)
            features = self._cut(_features(fields))
            if len(features) != len(objects):
                raise RowError(
                    f"features: {len(features)} boxes, of which the predictions have {len(objects)}"
                )
        return Record(id=identity, features=features, **self._classes(objects), **_frame(said))

    def _prediction(self, identity: str) -> Any:
        """What the file of predictions says of an id."""
        assert self._predictions is not None
        places = self._predictions.index.find(self._rule(identity) or "")
        rows = [self._predictions.row(place)[1] for place in places]
        if not rows:
            raise RowError("predictions: no row of this id")
        if self._config.duplicates == "refuse" and any(row != rows[0] for row in rows):
            raise RowError(f"predictions: {len(rows)} rows that say different things")
        return _parse(rows[0][0], "predictions")

    def _own_features(self, objects: list[dict[str, Any]]) -> np.ndarray | None:
        """[N, D] from the objects themselves; None where the recipe says that there are none."""
        if self._config.feature_size is None:
            return None
        rows = [
            from_base64(_text(o, "feature"), dtype="<f4", shape=(-1,), name="feature")
            for o in objects
        ]
        if len({len(row) for row in rows}) > 1:
            raise RowError("feature: of several lengths in one picture")
        return self._cut(np.array(rows, np.float32).reshape(len(rows), -1) if rows else None)

    def _cut(self, features: np.ndarray | None) -> np.ndarray:
        """`features` without the box's place, where they end in it."""
        if features is None:
            return np.zeros((0, 0), np.float32)
        if features.shape[1] == (self._config.feature_size or 0) + NUM_PLACE_VALUES:
            return features[:, :-NUM_PLACE_VALUES]
        return features

    def _classes(self, objects: list[dict[str, Any]]) -> dict[str, Any]:
        """Record's boxes, labels, scores and what else the objects have."""
        num = len(objects)
        found: dict[str, Any] = {
            "boxes": numbers([o.get("rect") for o in objects], (num, 4), "rect"),
            "scores": numbers([o.get("conf") for o in objects], (num,), "conf"),
            "labels": _named([o.get("class") for o in objects], self._labels.of_name, "class"),
        }
        if self._config.num_top > 1:
            found["probabilities"] = self._probabilities(objects)
        if self._attributes is not None:
            found["attributes"], found["attribute_scores"] = self._best_attributes(objects)
        return found

    def _probabilities(self, objects: list[dict[str, Any]]) -> np.ndarray:
        """[N, C] from scores_all, whose first is the background's."""
        num_labels = len(self._labels.names)
        rows = [
            from_base64(
                _text(o, "scores_all"), dtype="<f4", shape=(num_labels + 1,), name="scores_all"
            )[1:]
            for o in objects
        ]
        return np.array(rows, np.float32).reshape(len(objects), num_labels)

    def _best_attributes(self, objects: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        """([N] the attribute of the highest score, -1 for none, [N] its score)."""
        assert self._attributes is not None
        of_name = {**self._attributes.of_name, **dict.fromkeys(BACKGROUND, -1)}
        best, scores = np.full(len(objects), -1, np.int64), np.zeros(len(objects), np.float32)
        for row, item in enumerate(objects):
            names, values = item.get("attributes", []), item.get("attr_scores", [])
            if not isinstance(names, list) or not isinstance(values, list):
                raise RowError("attributes: no list")
            if names or values:
                each = numbers(values, (len(names),), "attr_scores")
                if not np.isfinite(each).all():
                    raise RowError("attr_scores: NaN or infinite")
                top = int(each.argmax())
                best[row] = _named([names[top]], of_name, "attributes")[0]
                scores[row] = each[top]
        return best, scores


def _has_objects(fields: list[bytes]) -> bool:
    """Whether a row is of scene_graph_benchmark's layout."""
    try:
        said = _parse(fields[0], "row")
    except RowError:
        return False
    return isinstance(said, dict) and "features" not in said


def _parse(field: bytes, name: str) -> Any:
    try:
        return parse_json(field)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{name}: no JSON ({str(error)[:80]})") from None


def _objects(said: Any) -> list[dict[str, Any]]:
    """The objects of a row: its list, or the list in its dict."""
    objects = said.get("objects") if isinstance(said, dict) else said
    if not isinstance(objects, list) or not all(isinstance(o, dict) for o in objects):
        raise RowError('predictions: no list of objects, expected {"objects": [...]}')
    return objects


def _frame(said: Any) -> dict[str, Any]:
    """The size of the picture that boxes are in, where the row has it."""
    if not isinstance(said, dict) or "image_w" not in said or "image_h" not in said:
        return {}
    sizes = [said["image_w"], said["image_h"]]
    if not all(type(size) in (int, float) and size == size // 1 for size in sizes):
        raise RowError(f"image_w, image_h: {sizes!r:.60}, expected whole numbers")
    return {"size_px": (int(sizes[0]), int(sizes[1]))}


def _features(fields: list[bytes]) -> np.ndarray:
    """[N, D] of a row of features.tsv or of feature.tsv."""
    if len(fields) == 1:
        said = _parse(fields[0], "features")
        if not isinstance(said, dict):
            raise RowError('features: no {"num_boxes": ..., "features": ...}')
        num, coded = said.get("num_boxes"), said.get("features")
        if type(num) is not int or num < 0 or not isinstance(coded, str):
            raise RowError("features: num_boxes or features are missing or of another kind")
    elif len(fields) == 2:
        num, coded = whole_number(fields[0], "num_boxes"), fields[1]
    else:
        raise RowError(f"columns: {len(fields) + 1}, expected 2 or 3")
    return from_base64(coded, dtype="<f4", shape=(num, -1), name="features")


def _named(names: list[Any], of_name: Mapping[str, int], what: str) -> np.ndarray:
    """[N] our numbers of names."""
    for name in names:
        if not isinstance(name, str) or name not in of_name:
            raise RowError(f"{what}: {name!r:.60} is not among the names")
    return np.array([of_name[name] for name in names], np.int64)


def _text(item: dict[str, Any], name: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise RowError(f"{name}: {type(value).__name__}, expected base64")
    return value
