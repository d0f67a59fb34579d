"""Detections in COCO's results format: one JSON list of boxes of all pictures.

https://cocodataset.org/#format-results: [{"image_id": number or text, "category_id": number,
"bbox": [x, y, width, height], "score": number}], pixels of the original picture from 0, x + width
being where the box ends. `feature` may come with each: a list of numbers, or base64 of f4 [D]. The
file is gone through once by pieces, and each picture's detections, wherever they are, are then
read by their place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from stages.distill.precomputed.config import FeaturesConfig
from stages.distill.precomputed.files import OpenFiles, find_files
from stages.distill.precomputed.formats.arrays import from_base64, numbers
from stages.distill.precomputed.formats.record import FeaturesError, Record, RowError
from stages.distill.precomputed.ids import rule_of
from stages.distill.precomputed.index import Place, ScannedRow, index_files
from stages.distill.precomputed.names import Names
from stages.json_text import parse_json

MAX_ENTRY_BYTES = 1 << 24
_PIECE_BYTES = 1 << 22
_CATEGORY = re.compile(rb'"category_id"\s*:\s*"?(-?\d{1,18})(?:\.0+)?"?\s*[,}]')
_COCO_GAPS = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71})
"""Numbers up to 80 that none of COCO's categories, 1 to 90, has."""
_WHOLE = re.compile(r"-?[0-9]{1,18}")


class CocoJson:
    """The detections of one file or several; the same one twice is one."""

    is_row_a_picture = False

    def __init__(
        self, config: FeaturesConfig, labels: Names, *, folder: Path | None, show: bool
    ) -> None:
        self._labels, self._size = labels, config.feature_size
        paths = find_files(config.path, field="path")
        ids = {path: set(_categories(path)) for path in paths}
        _check_categories(ids, labels)
        if not str(config.labels).endswith(".json"):
            _check_gaps(ids, labels)
        self.index = index_files(
            paths,
            scan_list,
            name=f"coco {config.id} {config.pattern}",
            rule=rule_of(config),
            folder=folder,
            show=show,
        )
        self.fingerprint = self.index.fingerprint
        self._files = OpenFiles(paths)

    def id_at(self, place: Place) -> str:
        """The image_id of a detection."""
        return _identity(self._entry(self._files.read(place)).get("image_id")) or ""

    def read(self, places: Sequence[Place]) -> Record:
        """The record of all detections of a picture; RowError where one of them is not valid."""
        entries = [self._entry(row) for row in dict.fromkeys(map(self._files.read, places))]
        num = len(entries)
        boxes = numbers([entry.get("bbox") for entry in entries], (num, 4), "bbox")
        if (boxes[:, 2:] < 0).any():
            raise RowError("bbox: a width or height below 0")
        boxes[:, 2:] += boxes[:, :2]
        return Record(
            id=_identity(entries[0].get("image_id")) or "",
            boxes=boxes,
            scores=numbers([entry.get("score") for entry in entries], (num,), "score"),
            labels=np.array([self._label(entry.get("category_id")) for entry in entries]),
            features=None
            if self._size is None
            else np.array([_feature(entry.get("feature"), self._size) for entry in entries]),
        )

    @staticmethod
    def _entry(row: bytes) -> dict[str, Any]:
        try:
            entry = parse_json(row)
        except (ValueError, RecursionError) as error:
            raise RowError(f"no JSON ({str(error)[:80]})") from None
        if not isinstance(entry, dict):
            raise RowError(f"a {type(entry).__name__}, expected a detection")
        return entry

    def _label(self, category: Any) -> int:
        text = _identity(category) or ""
        number = int(text) if _WHOLE.fullmatch(text) else -1
        if number not in self._labels.of_number:
            raise RowError(f"category_id: {category!r:.40} is not among the names")
        return self._labels.of_number[number]


def _check_categories(ids: Mapping[Path, set[int]], labels: Names) -> None:
    """FeaturesError where a detection's category is not among the names: one is the proof that
    the names are not the file's, and so that the labels of all others are wrong."""
    numbers_ = sorted(labels.of_number)
    for path, found in ids.items():
        odd = sorted(found - set(numbers_))
        if odd:
            start = " Ids that start at 0 are not the lines of a text file." if odd[0] == 0 else ""
            raise FeaturesError(
                f"path is {str(path)!r}, with the category_id {', '.join(map(str, odd[:5]))}; "
                f"expected those of labels, {numbers_[0]} to {numbers_[-1]}.{start} Give, as "
                'distill.features.labels, a JSON file {"categories": [{"id": ..., "name": ...}, '
                "...]} with the ids that the detections have"
            )


def _check_gaps(ids: Mapping[Path, set[int]], labels: Names) -> None:
    """FeaturesError where a text file has COCO's 80 names and the detections, as far as can be
    seen, COCO's own ids, from 1 to 90: from the 12th on each would get a label after its own."""
    if len(labels.names) != 80 or (labels.names[0], labels.names[-1]) != ("person", "toothbrush"):
        return
    found: set[int] = set().union(*ids.values())
    if found and max(found) >= min(_COCO_GAPS) and not found & _COCO_GAPS:
        raise FeaturesError(
            f"path is {str(next(iter(ids)))!r}, with the category_id {max(found)} and none of "
            f"{', '.join(map(str, sorted(_COCO_GAPS)))}, as COCO's own ids have it; expected the "
            "lines of labels, 1 to 80. Give, as distill.features.labels, COCO's "
            'instances_val2017.json, or another JSON file {"categories": [{"id": ..., "name": '
            "...}, ...]} with the ids that the detections have"
        )


def _identity(value: Any) -> str | None:
    """A number or text of JSON as text, by value: 7, 7.0 and "7" are one. None for all else."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return str(value) if type(value) in (int, str) else None


def _categories(path: Path) -> Iterator[int]:
    """Every category_id of a file, repeated ones too."""
    with open(path, "rb") as source:
        rest = b""
        while piece := source.read(_PIECE_BYTES):
            text = rest + piece
            end = text.rfind(b",") + 1  # a number is followed by a comma or a bracket
            yield from (int(found[1]) for found in _CATEGORY.finditer(text, 0, end))
            rest = text[end:]
        yield from (int(found[1]) for found in _CATEGORY.finditer(rest))


def _feature(value: Any, size: int) -> np.ndarray:
    if isinstance(value, str):
        return from_base64(value, dtype="<f4", shape=(size,), name="feature")
    if not isinstance(value, list):
        raise RowError(
            "feature: none in a detection; set distill.features.feature_size to null where the "
            "file has none"
        )
    return numbers(value, (size,), "feature")


def scan_list(source: BinaryIO) -> Iterator[ScannedRow]:
    """Every entry of a JSON list, with its image_id.

    Raises FeaturesError where the file is no list, is cut short or is no JSON from some byte on: as
    a picture's detections may be anywhere, those of every picture may then be incomplete.
    """
    decoder = json.JSONDecoder()
    # As latin-1 every byte is one character, so places in the text are places in the file; what
    # bounds JSON is ASCII.
    text, start = source.read(_PIECE_BYTES).decode("latin-1"), 0
    at = _skip(text, 3 if text.startswith("\xef\xbb\xbf") else 0, " \t\r\n")
    if text[at : at + 1] != "[":
        raise FeaturesError(
            f"path is {source.name!r}, whose JSON is no list; expected COCO's results format, "
            '[{"image_id": ..., "category_id": ..., "bbox": ..., "score": ...}, ...]'
        )
    at += 1
    while True:
        at = _skip(text, at, " \t\r\n,")
        if text[at : at + 1] == "]":
            return
        try:
            entry, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            piece = source.read(_PIECE_BYTES).decode("latin-1")
            if not piece or len(text) - at > MAX_ENTRY_BYTES:
                raise FeaturesError(
                    f"path is {source.name!r}, which is cut short or no JSON from byte "
                    f"{start + at} on ({str(error)[:60]}), so any picture may lack detections; "
                    "copy the file again"
                ) from None
            text, start, at = text[at:] + piece, start + at, 0
            continue
        image_id = entry.get("image_id") if isinstance(entry, dict) else None
        if (text_id := _identity(image_id)) is not None:
            identity = text_id.encode("latin-1", "ignore").decode("utf-8", "replace")
            yield ScannedRow(identity, start + at, end - at)
        else:
            yield ScannedRow(None, start + at, end - at, "no image_id")
        at = end


def _skip(text: str, at: int, blanks: str) -> int:
    while at < len(text) and text[at] in blanks:
        at += 1
    return at
