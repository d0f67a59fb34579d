"""Flickr30k Entities: Sentences/ID.txt and Annotations/ID.xml (Plummer et al., IJCV 2017)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from stages.transfer.example import Example
from stages.transfer.readers.records import ExampleCollector, ReaderError, TaskData

MAX_FILE_BYTES = 1 << 20
_PHRASE = re.compile(r"\[/EN#(?P<chain>\d+)(?P<types>(?:/\w+)+) (?P<text>[^\]]*)\]")
EDGES = ("xmin", "ymin", "xmax", "ymax")


def read_flickr30k_entities(
    folder: Path, images: Path, *, ids: Iterable[str] | None = None, max_missing: int = 0
) -> TaskData:
    """An example a phrase that has boxes: its caption as text; info has "start", "end"
    (characters), "boxes" (xyxy as shares of width and height) and "types".

    Boxes are stated in pixels of the original pictures, 1-based; shares hold for copies of any
    size.
    ids: of the pictures (default: all with annotations). Phrases without boxes (scenes, what is not
    visible) are counted and left out.
    """
    if ids is None:
        ids = sorted(path.stem for path in (folder / "Sentences").glob("*.txt"))
    collector = ExampleCollector(max_missing=max_missing)
    for picture_id in ids:
        boxes = _read_boxes(folder / "Annotations" / f"{picture_id}.xml")
        sentences = folder / "Sentences" / f"{picture_id}.txt"
        for number, line in enumerate(_read(sentences).splitlines(), start=1):
            caption, phrases = parse_sentence(line)
            for count, (start, end, chain, types) in enumerate(phrases):
                if not boxes.get(chain):
                    collector.drop("phrase without a box")
                    continue
                info = {"start": start, "end": end, "boxes": boxes[chain], "types": types}
                collector.add(
                    Example(
                        id=f"{picture_id}-{number}-{count}",
                        images=(images / f"{picture_id}.jpg",),
                        texts=(caption,),
                        label=boxes[chain],
                        info=info,
                    ),
                    f"{sentences}:{number}, phrase {count}",
                )
    return collector.done()


def parse_sentence(line: str) -> tuple[str, list[tuple[int, int, str, list[str]]]]:
    """A line without its marks, and each phrase's start, end, chain and types."""
    caption, phrases, at = "", [], 0
    for match in _PHRASE.finditer(line):
        caption += line[at : match.start()]
        start = len(caption)
        caption += match["text"]
        phrases.append((start, len(caption), match["chain"], match["types"].strip("/").split("/")))
        at = match.end()
    return caption + line[at:], phrases


def _read_boxes(path: Path) -> dict[str, list[list[float]]]:
    text = _read(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ReaderError(f"{path}: got a document type, expected plain XML")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ReaderError(f"{path}:{error.position[0]}: not whole XML ({error})") from None
    width, height = (_number(path, root.find("size"), name) for name in ("width", "height"))
    boxes: dict[str, list[list[float]]] = {}
    for thing in root.iter("object"):
        box = thing.find("bndbox")
        if box is None:
            continue
        x1, y1, x2, y2 = (_number(path, box, edge) for edge in EDGES)
        shares = [(x1 - 1) / width, (y1 - 1) / height, x2 / width, y2 / height]
        for name in thing.findall("name"):
            boxes.setdefault(name.text or "", []).append(shares)
    return boxes


def _number(path: Path, element: ElementTree.Element | None, name: str) -> float:
    text = element.findtext(name) if element is not None else None
    try:
        return float(text or "")
    except ValueError:
        raise ReaderError(f"{path}: {name}: got {text!r}, expected a number") from None


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ReaderError(f"{path}: larger than {MAX_FILE_BYTES} bytes, expected annotations")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ReaderError(f"{path}: {error.strerror}; expected an annotation file") from None
    except UnicodeDecodeError as error:
        raise ReaderError(f"{path}: not UTF-8 ({error})") from None
