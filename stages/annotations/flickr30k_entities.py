"""Parsers of Flickr30k Entities: a line of a Sentences file, and a file of Annotations.

Layout: Plummer et al., IJCV 2017; https://github.com/BryanPlummer/flickr30k_entities.
Sentences/ID.txt has a caption a line, "[/EN#283585/people A young male] kneeling ...";
Annotations/ID.xml has the size of the original picture and boxes in its pixels, each of one or more
coreference chains.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from xml.etree import ElementTree

from boxless.errors import BoxlessError

MAX_FILE_BYTES = 1 << 20
"""More than any file of a picture holds."""
MARK = "/EN#"
EDGES = ("xmin", "ymin", "xmax", "ymax")
_PHRASE = re.compile(r"\[/EN#(?P<chain>\d+)(?P<types>(?:/\w+)+) (?P<text>[^\]]*)\]")


@dataclass(frozen=True, kw_only=True)
class MarkedPhrase:
    """start, end: characters of the caption, end exclusive; chain: of coreference; types: one or
    more, as "people"."""

    start: int
    end: int
    chain: str
    types: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class MarkedCaption:
    """A caption without its marks and without blanks around it; is_broken: a mark that could not be
    read is still in it."""

    text: str
    phrases: tuple[MarkedPhrase, ...]
    is_broken: bool


@dataclass(frozen=True, kw_only=True)
class PictureBoxes:
    """The size of the original picture, the boxes of each chain, xyxy in its pixels as they are
    written (the first pixel is 1), and all chains, those without a box too."""

    width: int
    height: int
    boxes_of: dict[str, list[list[float]]]
    chains: frozenset[str]


def parse_caption(line: str) -> MarkedCaption:
    """A line of Sentences. A phrase without words is none."""
    line = line.strip()
    text, phrases, at = "", [], 0
    for match in _PHRASE.finditer(line):
        text += line[at : match.start()]
        start, at = len(text), match.end()
        text += match["text"]
        if match["text"].strip():
            types = tuple(match["types"].strip("/").split("/"))
            phrases.append(
                MarkedPhrase(start=start, end=len(text), chain=match["chain"], types=types)
            )
    text += line[at:]
    lead = len(text) - len(text.lstrip())
    text = text.strip()
    kept = [
        MarkedPhrase(
            start=max(0, phrase.start - lead),
            end=min(len(text), phrase.end - lead),
            chain=phrase.chain,
            types=phrase.types,
        )
        for phrase in phrases
    ]
    return MarkedCaption(text=text, phrases=tuple(kept), is_broken=MARK in text)


def parse_boxes(text: str, note: Callable[[str], None]) -> PictureBoxes:
    """A file of Annotations. `note` is called with each object that has no valid box, but for those
    that the file marks as having none. BoxlessError for other files."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise BoxlessError("a document type in it; expected plain XML")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise BoxlessError(f"no XML ({error})") from None
    sides = [root.findtext(f"size/{side}", "").strip() for side in ("width", "height")]
    if not all(side.isascii() and side.isdigit() and 0 < int(side) < 100_000 for side in sides):
        raise BoxlessError(f"size {' x '.join(sides)}; expected width and height in pixels")
    boxes_of: dict[str, list[list[float]]] = {}
    named: set[str] = set()
    for number, entry in enumerate(root.iter("object")):
        chains = [(name.text or "").strip() for name in entry.findall("name")]
        named.update(chains)
        box = entry.find("bndbox")
        if box is None:
            if "1" not in (entry.findtext("nobndbox"), entry.findtext("scene")):
                note(f"object without a box: number {number}")
            continue
        corners = _corners(box)
        if corners is None or not chains:
            note(f"box is not four numbers: object {number}")
            continue
        for chain in chains:
            boxes_of.setdefault(chain, []).append(corners)
    return PictureBoxes(
        width=int(sides[0]), height=int(sides[1]), boxes_of=boxes_of, chains=frozenset(named)
    )


def _corners(box: ElementTree.Element) -> list[float] | None:
    """The four edges; None where they are not numbers of a picture."""
    try:
        corners = [float(box.findtext(edge, "")) for edge in EDGES]
    except ValueError:
        return None
    return corners if all(abs(corner) < 1e9 for corner in corners) else None
