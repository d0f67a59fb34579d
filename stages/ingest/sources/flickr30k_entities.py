"""Flickr30k Entities in its original files: captions, phrases and boxes of Flickr30k's pictures.

Layout: Plummer et al., IJCV 2017; https://github.com/BryanPlummer/flickr30k_entities. A folder with
`Annotations/ID.xml` (boxes in pixels of the original pictures, whose size the file gives) and
`Sentences/ID.txt` (a caption a line, "[/EN#283585/people A young male] kneeling ..."), and lists
`train.txt`, `val.txt`, `test.txt` with an id a line. The pictures are `ID.jpg` in a folder of their
own, of any size.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from boxless.errors import BoxlessError
from stages.ingest.files import (
    describe_folder,
    list_pictures,
    open_folder,
    read_picture,
    size_bytes,
)
from stages.ingest.sources.source import (
    Failure,
    Picture,
    SourceError,
    clean_caption,
    inputs_fingerprint,
    safe_key,
    shown,
)
from stages.ingest.splits import SPLIT_FILES, SplitRule

EXPECTED = "the folder of Flickr30k Entities, with Annotations/*.xml and Sentences/*.txt"
TYPES = (
    "people",
    "clothing",
    "bodyparts",
    "animals",
    "vehicles",
    "instruments",
    "scene",
    "other",
)
MAX_FILE_BYTES = 1 << 20
_PHRASE = re.compile(r"\[/EN#(?P<chain>\d+)(?P<types>(?:/[a-zA-Z]+)+) (?P<text>[^\]]*)\]")


class Flickr30kEntitiesSource:
    """The pictures below `root` that the annotations know, with boxes labelled by type.

    A picture in a list of splits goes to that split; without lists the split is drawn. Raises
    SourceError at once where the folders are not what they should be.
    """

    label_names: Sequence[str] = TYPES
    attribute_names: Sequence[str] = ()

    def __init__(self, *, root: str, annotations: str, split_rule: SplitRule) -> None:
        self._root = open_folder(root, field="ingest.root", expected="the folder of the pictures")
        self._folder = _find_annotations(annotations)
        self._split_rule = split_rule
        self._lists = read_split_lists(self._folder)
        self.dropped: Counter[str] = Counter()
        self.warnings: list[str] = []
        if not self._lists:
            self.warnings.append(
                f"{annotations} has no {', '.join(SPLIT_FILES)}: the split is drawn, so pictures "
                "of Flickr30k's own val and test may be trained on; ingest.exclude takes lists of "
                "pictures to leave out"
            )
        self._inputs = self._list_inputs()
        sound = [i for i in self._inputs if isinstance(i, Picture)]
        if not any(picture.size_bytes >= 0 for picture in sound):
            raise SourceError(
                f"ingest.root is {root!r}, where not one picture is that {annotations} knows "
                f"({describe_folder(self._root)}); expected pictures ID.jpg of Flickr30k"
            )

    def pictures(self) -> Sequence[Picture | Failure]:
        """One input an annotated id, and one a picture without annotations; by key."""
        return self._inputs

    def fingerprint(self) -> str:
        """Hash of names and sizes of all pictures and of all that the annotations say."""
        return inputs_fingerprint(self._inputs)

    def _list_inputs(self) -> list[Picture | Failure]:
        names = {Path(name).stem: name for name in list_pictures(self._root)}
        ids = sorted({path.stem for path in (self._folder / "Sentences").glob("*.txt")})
        inputs = [self._input(picture_id, names.get(picture_id)) for picture_id in ids]
        for picture_id, name in names.items():
            if picture_id not in set(ids) and picture_id not in self._lists:
                reason = f"no sentences of this picture: {shown(name)}"
                inputs.append(Failure(key=safe_key(picture_id), reason=reason))
        for picture_id in sorted(set(self._lists) - set(ids)):
            reason = f"no sentences: {self._lists[picture_id]} lists {shown(picture_id)}"
            inputs.append(Failure(key=safe_key(picture_id), reason=reason))
        return sorted(inputs, key=lambda i: i.key)

    def _input(self, picture_id: str, name: str | None) -> Picture | Failure:
        if self._lists and picture_id not in self._lists:
            reason = f"in no split: {', '.join(sorted(set(self._lists.values())))} do not list it"
            return Failure(key=safe_key(picture_id), reason=reason)
        try:
            sentences = parse_sentences(_read(self._folder / "Sentences" / f"{picture_id}.txt"))
        except ValueError as error:
            return Failure(key=safe_key(picture_id), reason=f"broken sentences: {error}")
        notes: list[str] = list(sentences.notes)
        size_px: tuple[int, int] | None = None
        boxes_of: dict[str, list[list[float]]] = {}
        try:
            size_px, boxes_of = parse_annotations(
                _read(self._folder / "Annotations" / f"{picture_id}.xml"), notes.append
            )
        except ValueError as error:
            notes.append(f"broken annotations: {error}")
        file_name = name or f"{picture_id}.jpg"
        word = self._lists.get(picture_id)
        return Picture(
            key=safe_key(picture_id),
            split=self._split_rule.of(word, group=picture_id),
            read=functools.partial(read_picture, self._root, file_name),
            captions=sentences.captions,
            fields={
                "image_id": shown(picture_id),
                "source": "flickr30k-entities",
                "file_name": shown(file_name),
                **({"corpus_split": word} if word else {}),
            },
            truth=_truth(sentences, boxes_of) if size_px else None,
            size_px=size_px,
            origin=file_name,
            size_bytes=size_bytes(self._root, file_name),
            notes=tuple(notes),
        )


class Sentences:
    """The captions of a picture, their phrases, the type of each chain, and what was left out."""

    def __init__(self) -> None:
        self.captions: tuple[str, ...] = ()
        self.phrases: list[list[dict[str, Any]]] = []
        self.type_of: dict[str, str] = {}
        self.notes: list[str] = []


def parse_sentences(text: str) -> Sentences:
    """A file of Sentences; ValueError where it has no caption at all.

    A bracket that is no phrase stays in the caption and is noted.
    """
    found = Sentences()
    captions = []
    for number, line in enumerate(text.splitlines()):
        if not line.strip():
            continue
        caption, at = "", 0
        phrases: list[dict[str, Any]] = []
        for match in _PHRASE.finditer(line):
            caption += line[at : match.start()]
            at = match.end()
            kind, words = match["types"].split("/")[1], match["text"]
            start = len(caption)
            caption += words
            if words.strip():
                phrases.append(
                    {"start": start, "end": len(caption), "chain": match["chain"], "type": kind}
                )
                found.type_of.setdefault(match["chain"], kind)
        caption += line[at:]
        if "/EN#" in caption:
            found.notes.append(f"broken phrase: line {number + 1}: {shown(caption[:60])}")
        lead = len(caption) - len(caption.lstrip())
        for phrase in phrases:
            phrase["start"], phrase["end"] = phrase["start"] - lead, phrase["end"] - lead
        captions.append(clean_caption(caption))
        found.phrases.append(phrases)
    if not captions:
        raise BoxlessError("no caption in it")
    found.captions = tuple(captions)
    return found


def parse_annotations(
    text: str, note: Callable[[str], None]
) -> tuple[tuple[int, int], dict[str, list[list[float]]]]:
    """((width, height) of the original picture, {chain: its boxes, xyxy in its pixels}).

    A chain may have several boxes, and a box several chains. An object without a sound box is
    noted, but for those that the file marks as having none. ValueError for other files.
    """
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
    for number, entry in enumerate(root.iter("object")):
        chains = [(name.text or "").strip() for name in entry.findall("name")]
        box = entry.find("bndbox")
        if box is None:
            if "1" not in (entry.findtext("nobndbox"), entry.findtext("scene")):
                note(f"object without a box: number {number}")
            continue
        try:
            corners = [float(box.findtext(side, "")) for side in ("xmin", "ymin", "xmax", "ymax")]
        except ValueError:
            note(f"box is not four numbers: object {number}")
            continue
        if not chains or not all(abs(corner) < 1e9 for corner in corners):
            note(f"box is not four numbers: object {number}")
            continue
        for chain in chains:
            boxes_of.setdefault(chain, []).append(corners)
    return (int(sides[0]), int(sides[1])), boxes_of


def _truth(sentences: Sentences, boxes_of: Mapping[str, list[list[float]]]) -> dict[str, Any]:
    """A sample's truth: equal boxes of several chains are one, labelled by the first one's type."""
    boxes: list[list[float]] = []
    labels: list[str] = []
    rows_of: dict[str, list[int]] = {}
    for chain, own in boxes_of.items():
        for box in own:
            if box not in boxes:
                kind = sentences.type_of.get(chain, "other")
                boxes.append(box)
                labels.append(kind if kind in TYPES else "other")
            rows_of.setdefault(chain, []).append(boxes.index(box))
    phrases = [
        [{**phrase, "objects": rows_of.get(phrase["chain"], [])} for phrase in of_caption]
        for of_caption in sentences.phrases
    ]
    return {
        "boxes": boxes,
        "labels": labels,
        "attributes": [None] * len(boxes),
        "phrases": phrases,
    }


def read_split_lists(folder: Path) -> dict[str, str]:
    """{id: "train", "val" or "test"} of the lists that are in a folder."""
    found: dict[str, str] = {}
    for word, name in SPLIT_FILES.items():
        if (folder / name).is_file():
            for line in _read(folder / name, most_bytes=1 << 26).split():
                found.setdefault(line.removesuffix(".jpg"), word)
    return found


def _find_annotations(path: str) -> Path:
    folder = open_folder(path, field="ingest.annotations", expected=EXPECTED)
    for name in ("Annotations", "Sentences"):
        if not (folder / name).is_dir():
            raise SourceError(
                f"ingest.annotations is {path!r}, with no folder {name} in it "
                f"({describe_folder(folder)}); expected {EXPECTED}"
            )
    return folder


def _read(path: Path, *, most_bytes: int = MAX_FILE_BYTES) -> str:
    """A small text file; ValueError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise BoxlessError(f"{path.name}: {error.strerror}") from None
    if len(data) > most_bytes:
        raise BoxlessError(f"{path.name}: more than {most_bytes} bytes")
    return data.decode("utf-8-sig", "replace")
