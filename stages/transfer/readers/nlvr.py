"""NLVR2 and NLVR: JSON lines of a sentence that is true or false of two pictures, or of one."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from stages.transfer.example import Example
from stages.transfer.readers.nlvr_statements import Statement, scene_of, statements
from stages.transfer.readers.records import ExampleCollector, Record, TaskData, read_json_lines

LABELS = ("True", "False")


def read_nlvr2(path: Path, images: Path, *, max_missing: int = 0) -> TaskData:
    """lil-lab/nlvr/nlvr2's train, dev, test1 and test2 files. Pictures are
    SPLIT-SET-PAIR-img0.png and -img1.png in `images`, or in images/DIRECTORY where a line names
    one. A hidden label is None."""
    collector = ExampleCollector(max_missing=max_missing)
    for record in read_json_lines(path):
        identifier = record.text("identifier")
        pair, dash, _ = identifier.rpartition("-")
        if identifier.count("-") != 3 or not dash:
            raise record.error("identifier", identifier, "SPLIT-SET-PAIR-SENTENCE")
        folder = _folder(record, images)
        collector.add(
            Example(
                id=identifier,
                images=(folder / f"{pair}-img0.png", folder / f"{pair}-img1.png"),
                texts=(record.text("sentence"),),
                label=_label(record),
            ),
            record.where,
        )
    return collector.done(path)


def read_nlvr(
    path: Path,
    images: Path,
    *,
    split: str,
    num_orders: int = 6,
    num_statements: int = 0,
    max_missing: int = 0,
) -> TaskData:
    """lil-lab/nlvr/nlvr's train.json, dev.json and test.json, an example a picture: the first
    `num_orders` orders of its three boxes, images/DIRECTORY/SPLIT-IDENTIFIER-ORDER.png.

    `num_statements`: generated statements of each picture beside its sentence (nlvr_statements).
    """
    collector = ExampleCollector(max_missing=max_missing)
    for record in read_json_lines(path):
        identifier, folder = record.text("identifier"), images / record.identifier("directory")
        for order in range(num_orders):
            example = Example(
                id=f"{identifier}-{order}",
                images=(folder / f"{split}-{identifier}-{order}.png",),
                texts=(record.text("sentence"),),
                label=_label(record),
            )
            where = f"{record.where} (order {order})"
            if not collector.add(example, where):
                continue
            for number, (text, truth) in enumerate(_statements(record, example, num_statements)):
                collector.add(
                    replace(example, id=f"{example.id}-s{number}", texts=(text,), label=str(truth)),
                    where,
                )
    return collector.done(path)


def _statements(record: Record, example: Example, number: int) -> list[Statement]:
    """So many statements about a record's scene, for one of its orders."""
    if not number:
        return []
    boxes = record.list("structured_rep")
    try:
        scene = scene_of(boxes)
    except ValueError:
        raise record.error("structured_rep", boxes, "three lists of objects") from None
    return statements(scene, number, random.Random(example.id))


def _folder(record: Record, images: Path) -> Path:
    if "directory" not in record.values:
        return images
    return images / record.identifier("directory")


def _label(record: Record) -> str | None:
    return record.choice("label", LABELS) if record.values.get("label") is not None else None
