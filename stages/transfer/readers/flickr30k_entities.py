"""Flickr30k Entities: Sentences/ID.txt and Annotations/ID.xml (Plummer et al., IJCV 2017)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from boxless.errors import BoxlessError
from stages.annotations.flickr30k_entities import MAX_FILE_BYTES, parse_boxes, parse_caption
from stages.transfer.example import Example
from stages.transfer.readers.records import ExampleCollector, ReaderError, TaskData, read_text


def read_flickr30k_entities(
    folder: Path, images: Path, *, ids: Iterable[str] | None = None, max_missing: int = 0
) -> TaskData:
    """An example a phrase that has boxes: its caption as text; info has "start", "end"
    (characters), "boxes" (xyxy as shares of width and height) and "types".

    Boxes are stated in pixels of the original pictures, 1-based; shares hold for copies of any
    size.
    ids: of the pictures, with or without ".jpg" (default: all with annotations). Phrases without
    boxes (scenes, what is not visible) are counted and left out. ReaderError for a mark or a box
    that cannot be read.
    """
    collector = ExampleCollector(max_missing=max_missing)
    if ids is None:
        ids = sorted(path.stem for path in (folder / "Sentences").glob("*.txt"))
        for _ in {path.stem for path in (folder / "Annotations").glob("*.xml")} - set(ids):
            collector.drop("annotations without sentences")
    for name in ids:
        picture_id = name.removesuffix(".jpg")
        boxes, num_cut = _read_boxes(folder / "Annotations" / f"{picture_id}.xml")
        for _ in range(num_cut):
            collector.drop("part of a box beyond its picture")
        sentences = folder / "Sentences" / f"{picture_id}.txt"
        for number, line in enumerate(_read(sentences).split("\n"), start=1):
            caption = parse_caption(line)
            if caption.is_broken:
                raise ReaderError(
                    f"{sentences}:{number}: phrase: got {line[:80]!r}, expected each phrase as "
                    "[/EN#CHAIN/TYPE words]"
                )
            for count, phrase in enumerate(caption.phrases):
                own = boxes.get(phrase.chain)
                if not own:
                    collector.drop("phrase without a box")
                    continue
                info = {
                    "start": phrase.start,
                    "end": phrase.end,
                    "boxes": own,
                    "types": list(phrase.types),
                }
                collector.add(
                    Example(
                        id=f"{picture_id}-{number}-{count}",
                        images=(images / f"{picture_id}.jpg",),
                        texts=(caption.text,),
                        label=own,
                        info=info,
                    ),
                    f"{sentences}:{number}, phrase {count}",
                )
    return collector.done(folder)


def _read_boxes(path: Path) -> tuple[dict[str, list[list[float]]], int]:
    """The boxes of each chain as shares of the picture, and how many of them were cut at its
    edges."""

    def refuse(fault: str) -> None:
        raise ReaderError(f"{path}: {fault}; expected xmin, ymin, xmax, ymax")

    try:
        found = parse_boxes(_read(path), refuse)
    except ReaderError:
        raise
    except BoxlessError as error:
        raise ReaderError(f"{path}: {error}") from None
    width, height = found.width, found.height
    shares: dict[str, list[list[float]]] = {}
    num_cut = 0
    for chain, own in found.boxes_of.items():
        for x1, y1, x2, y2 in own:
            is_inside = x1 <= width and y1 <= height and x2 >= 1 and y2 >= 1
            if not (x1 <= x2 and y1 <= y2 and is_inside):
                refuse(
                    f"box of chain {chain}: got {x1:g}, {y1:g}, {x2:g}, {y2:g} in a picture of "
                    f"{width} x {height}"
                )
            # Within a pixel it is rounding.
            num_cut += x1 < 0 or y1 < 0 or x2 > width + 1 or y2 > height + 1
            box = [(x1 - 1) / width, (y1 - 1) / height, x2 / width, y2 / height]
            shares.setdefault(chain, []).append([min(max(share, 0.0), 1.0) for share in box])
    return shares, num_cut


def _read(path: Path) -> str:
    if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
        raise ReaderError(f"{path}: larger than {MAX_FILE_BYTES} bytes, expected annotations")
    return read_text(path)
