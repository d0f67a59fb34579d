"""Karpathy's splits: dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from stages.transfer.example import Example
from stages.transfer.readers.records import ExampleCollector, TaskData, parts, read_json


def read_karpathy(
    path: Path,
    images: Path,
    *,
    splits: Collection[str],
    max_captions: int | None = 5,
    max_missing: int = 0,
) -> TaskData:
    """An example a picture of some splits ("train", "restval", "val", "test"), with its captions.

    max_captions: the first ones of each picture; some of COCO's have six or seven, of which
    published scores take five. None takes all. How many were left out is counted.
    """
    collector = ExampleCollector(max_missing=max_missing)
    for record in parts(read_json(path), "images"):
        if record.text("split") not in splits:
            continue
        captions = tuple(sentence.text("raw") for sentence in parts(record, "sentences"))
        if not captions:
            raise record.error("sentences", [], "at least one caption")
        for _ in captions[max_captions:] if max_captions else ():
            collector.drop(f"captions beyond {max_captions} of a picture")
        folder = images / record.values.get("filepath", "")
        name = record.text("filename")
        collector.add(
            Example(id=name, images=(folder / name,), texts=captions[:max_captions]), record.where
        )
    return collector.done()
