"""Karpathy's splits: dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from stages.annotations.karpathy import KarpathyError, KarpathyImage, parse_image
from stages.picture import file_fault
from stages.student.text.tokenizer import is_blank
from stages.transfer.example import Example
from stages.transfer.readers.records import (
    ExampleCollector,
    ReaderError,
    Record,
    TaskData,
    parts,
    read_json,
)


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
    published scores take five. None takes all. How many were left out is counted, and the pictures
    of other splits. ReaderError where none is of these splits.
    """
    collector = ExampleCollector(max_missing=max_missing)
    others: set[str] = set()
    num_own = 0
    for record in parts(read_json(path), "images"):
        image = _image(record)
        if image.split not in splits:
            others.add(image.split)
            collector.drop(f"picture of split {image.split}")
            continue
        num_own += 1
        captions = tuple(image.sentences)
        if not captions:
            raise record.error("sentences", [], "at least one caption")
        for row, caption in enumerate(captions):
            if caption is None or is_blank(caption):
                got = record.list("sentences")[row]
                expected = "an object with a text raw that is not blank"
                raise record.error(f"sentences[{row}]: raw", got, expected)
        for _ in captions[max_captions:] if max_captions else ():
            collector.drop(f"captions beyond {max_captions} of a picture")
        files = [images / name for name in image.file_names]
        file = next((file for file in files if file_fault(file) is None), files[0])
        texts = tuple(str(caption) for caption in captions[:max_captions])
        collector.add(Example(id=image.name, images=(file,), texts=texts), record.where)
    if not num_own:
        raise ReaderError(
            f"{path}: got no picture of the splits {', '.join(splits)}, expected some; the file has "
            f"{', '.join(sorted(others)) or 'none'}"
        )
    return collector.done(path)


def _image(record: Record) -> KarpathyImage:
    try:
        return parse_image(record.values)
    except KarpathyError as error:
        raise ReaderError(f"{record.where}: {error}") from None
