"""Flickr30k Entities in its original files: captions, phrases and boxes of Flickr30k's pictures.

A folder with `Annotations/ID.xml` and `Sentences/ID.txt`
(`stages.annotations.flickr30k_entities`), and lists `train.txt`, `val.txt`, `test.txt` with an id a
line. The pictures are `ID.jpg` in a folder of their own, of any size.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boxless.errors import BoxlessError
from stages.annotations.flickr30k_entities import (
    MAX_FILE_BYTES,
    PictureBoxes,
    parse_boxes,
    parse_caption,
)
from stages.ingest.files import (
    describe_folder,
    open_folder,
    pictures_by_id,
    read_picture,
    size_bytes,
)
from stages.ingest.sources.source import (
    DroppedRecords,
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
NOT_VISUAL = "0"
"""The chain of phrases that no box can mean."""
REPLACEMENT = "\ufffd"


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
        self.dropped = DroppedRecords()
        self._lists = read_split_lists(self._folder, self.dropped)
        self.warnings: list[str] = []
        if not self._lists:
            self.warnings.append(
                f"{annotations} has no {', '.join(SPLIT_FILES)}: the split is drawn"
            )
        self._inputs = self._list_inputs()
        valid = [i for i in self._inputs if isinstance(i, Picture)]
        if not any(picture.size_bytes >= 0 for picture in valid):
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
        names, inputs = pictures_by_id(self._root)
        ids = {path.stem for path in (self._folder / "Sentences").glob("*.txt")}
        inputs += [self._input(picture_id, names.get(picture_id)) for picture_id in sorted(ids)]
        annotated = {path.stem for path in (self._folder / "Annotations").glob("*.xml")}
        for picture_id in sorted({*names, *self._lists, *annotated} - ids):
            if picture_id in self._lists:
                reason = f"no sentences: {self._lists[picture_id]} lists {picture_id}"
            elif picture_id in names:
                reason = f"no sentences of this picture: {names[picture_id]}"
            else:
                reason = f"no sentences: there is only Annotations/{picture_id}.xml"
            inputs.append(Failure(key=safe_key(picture_id), reason=shown(reason)))
        return sorted(inputs, key=lambda i: i.key)

    def _input(self, picture_id: str, name: str | None) -> Picture | Failure:
        if self._lists and picture_id not in self._lists:
            reason = f"in no split: {', '.join(sorted(set(self._lists.values())))} do not list it"
            return Failure(key=safe_key(picture_id), reason=reason)
        text = ""
        try:
            text = _read(self._folder / "Sentences" / f"{picture_id}.txt")
            sentences = parse_sentences(text)
        except ValueError as error:
            return Failure(key=safe_key(picture_id), reason=f"broken sentences: {error}")
        notes: list[str] = list(sentences.notes)
        if REPLACEMENT in text:
            notes.append(f"sentences are not UTF-8: {text.count(REPLACEMENT)} characters replaced")
        found = self._annotations_of(picture_id, sentences, notes)
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
            truth=_truth(sentences, found.boxes_of) if found else None,
            size_px=(found.width, found.height) if found else None,
            origin=file_name,
            size_bytes=size_bytes(self._root, file_name),
            notes=tuple(notes),
        )

    def _annotations_of(
        self, picture_id: str, sentences: Sentences, notes: list[str]
    ) -> PictureBoxes | None:
        """The boxes of a picture; None, with a note, where its file is missing or broken."""
        path = self._folder / "Annotations" / f"{picture_id}.xml"
        if not path.is_file():
            notes.append(f"no annotations: Annotations/{shown(path.name)} is not there")
            return None
        try:
            found = parse_boxes(_read(path), notes.append)
        except ValueError as error:
            notes.append(f"broken annotations: {error}")
            return None
        named = {phrase["chain"] for several in sentences.phrases for phrase in several}
        for chain in sorted(named - found.chains - {NOT_VISUAL}):
            notes.append(f"phrase that the annotations do not have: chain {chain}")
        for chain in sorted(found.boxes_of.keys() - named):
            notes.append(f"box of no phrase: chain {shown(chain)}")
        return found


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
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        caption = parse_caption(line)
        if caption.is_broken:
            found.notes.append(f"broken phrase: line {number}: {shown(caption.text[:60])}")
        found.phrases.append([])
        for phrase in caption.phrases:
            kind = phrase.types[0]
            found.phrases[-1].append(
                {"start": phrase.start, "end": phrase.end, "chain": phrase.chain, "type": kind}
            )
            found.type_of.setdefault(phrase.chain, kind)
        captions.append(clean_caption(caption.text))
    if not captions:
        raise BoxlessError("no caption in it")
    found.captions = tuple(captions)
    return found


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


def read_split_lists(folder: Path, dropped: DroppedRecords) -> dict[str, str]:
    """{id: "train", "val" or "test"} of the lists that are in a folder. An id that several lists
    have is not trained on, and is counted."""
    found: dict[str, str] = {}
    for word in ("val", "test", "train"):
        path = folder / SPLIT_FILES[word]
        if path.is_file():
            for line in _read(path, most_bytes=1 << 26).split():
                picture_id = line.removesuffix(".jpg")
                if found.setdefault(picture_id, word) != word:
                    reason = "second split of a picture"
                    dropped.add(reason, f"{picture_id}: {word} after {found[picture_id]}")
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
