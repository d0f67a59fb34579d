"""Excludes pictures of public evaluation sets from training.

COCO's Karpathy val and test, and Flickr30k's val and test, are what retrieval is scored on; half of
Visual Genome's pictures are COCO's, some of them from those splits (`coco_id` in its image_data
says which). A student that was pretrained on them is not comparable. `ingest.exclude` names the
lists; a picture of the train split that is in one is a failure with that reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sharding.format.schema import Failure
from sharding.user_paths import expand_user
from stages.ingest.files import read_json_object
from stages.ingest.sources.caption_files import whole_number
from stages.ingest.sources.source import (
    DroppedRecords,
    Picture,
    Source,
    SourceError,
    inputs_fingerprint,
    shown,
)

FIELD = "ingest.exclude"
EXPECTED = "Karpathy's JSON (dataset_coco.json), or a text file with a picture's name or id a line"
ALLOW = "set ingest.allow_evaluation_pictures to true where that is meant"
REASON = "evaluation picture"
EVALUATION_SPLITS = ("val", "test")
_COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})")
# COCO's names of 2017 do not say which were val2014's, of which Karpathy's val and test are.
_COCO_VAL2014 = re.compile(r"(?:COCO_val2014_)?\d{12}")
_FLICKR_NAME = re.compile(r"([1-9]\d{3,11})(?:_[0-9a-f]{4,16})?")

Identity = tuple[str, int]
"""What a picture is known by, whatever its file name: ("coco", id) or ("flickr", id)."""


def identities(fields: Mapping[str, Any]) -> Iterator[Identity]:
    """The identities of a picture, by its fields: file_name (in tars the key), coco_id and
    flickr_id."""
    yield from _of_name(_name_of(fields))
    for kind in ("coco", "flickr"):
        if type(fields.get(f"{kind}_id")) is int:
            yield kind, fields[f"{kind}_id"]


def _name_of(fields: Mapping[str, Any]) -> str:
    """The file name of a picture without folders; a picture of a tar has its key as image_id."""
    given = fields.get("file_name", fields.get("image_id", "") if "tar" in fields else "")
    return PurePosixPath(str(given)).name


def _of_name(file_name: str) -> Iterator[Identity]:
    stem = PurePosixPath(file_name).stem
    if match := _COCO_NAME.fullmatch(stem):
        yield "coco", int(match[1])
    elif match := _FLICKR_NAME.fullmatch(stem):
        yield "flickr", int(match[1])


def read_exclusions(paths: Sequence[str]) -> dict[Identity | str, str]:
    """{identity or file name: where it is listed} over some lists; SourceError for other files."""
    found: dict[Identity | str, str] = {}
    for path in paths:
        before = len(found)
        is_json = path.lower().endswith(".json")
        for where, names in _from_karpathy(path) if is_json else _from_text(path):
            for name in names:
                found.setdefault(name, where)
        if len(found) == before:
            raise SourceError(f"{FIELD} ({path}) lists no picture of its own; expected {EXPECTED}")
    return found


def _from_karpathy(path: str) -> Iterator[tuple[str, Iterable[Identity | str]]]:
    content = read_json_object(path, field=FIELD, expected=EXPECTED, keys=("images",))
    for image in content["images"]:
        if isinstance(image, dict) and image.get("split") in EVALUATION_SPLITS:
            name = PurePosixPath(str(image.get("filename", ""))).name
            fields = {"file_name": name, "coco_id": whole_number(image.get("cocoid"))}
            where = f"{image['split']} of {Path(path).name}"
            yield where, [*identities(fields), *_plain_names(name)]


def _from_text(path: str) -> Iterator[tuple[str, Iterable[Identity | str]]]:
    try:
        lines = expand_user(path).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{FIELD} ({path}): {error}; expected {EXPECTED}") from None
    for line in filter(None, map(str.strip, lines)):
        name = PurePosixPath(line.split()[0]).name
        number = whole_number(PurePosixPath(name).stem)
        as_ids = () if number is None else (("coco", number), ("flickr", number))
        yield Path(path).name, [*as_ids, *_of_name(name), *_plain_names(name)]


def _plain_names(name: str) -> tuple[str, ...]:
    """A file name as it is and without its ending: lists have either."""
    return tuple({name, PurePosixPath(name).stem} - {""})


@dataclass(frozen=True, kw_only=True)
class GuardedSource:
    """A source without the pictures of the train split that are listed as others' evaluation data.

    exclusions: as `read_exclusions` gives them.
    """

    source: Source
    exclusions: Mapping[Identity | str, str]

    @property
    def label_names(self) -> Sequence[str]:
        """As the source's."""
        return self.source.label_names

    @property
    def attribute_names(self) -> Sequence[str]:
        """As the source's."""
        return self.source.attribute_names

    @property
    def dropped(self) -> DroppedRecords:
        """As the source's."""
        return self.source.dropped

    @property
    def warnings(self) -> Sequence[str]:
        """The source's, and one where the lists have none of its pictures."""
        listed = [i for i in self.pictures() if isinstance(i, Failure)]
        if any(i.reason.startswith(REASON) for i in listed):
            return self.source.warnings
        idle = f"{FIELD} lists none of the pictures to train on, so nothing is left out for it"
        return [*self.source.warnings, idle]

    def pictures(self) -> Sequence[Picture | Failure]:
        """The source's inputs, with a Failure for each that is left out."""
        return [self._checked(i) for i in self.source.pictures()]

    def fingerprint(self) -> str:
        """Hash of all that is known of the inputs, the left out ones included."""
        return inputs_fingerprint(self.pictures())

    def _checked(self, picture: Picture | Failure) -> Picture | Failure:
        if isinstance(picture, Failure) or picture.split != "train":
            return picture
        name = _name_of(picture.fields)
        names: tuple[Identity | str, ...] = (*identities(picture.fields), *_plain_names(name))
        for known in names:
            if known in self.exclusions:
                reason = f"{REASON}: {shown(name)} is in {self.exclusions[known]}"
                return Failure(key=picture.key, reason=reason)
        return picture


def check_no_evaluation_pictures(source: Source, exclusions: Mapping[Identity | str, str]) -> None:
    """SourceError where the train split holds pictures that may be others' evaluation data and no
    list says which: Visual Genome's that are COCO's, COCO's of val2014 (or of 2017, where they may
    be of either), Flickr30k's without lists of splits, and what a corpus itself calls val or test.
    """
    listed = {known[0] for known in exclusions if isinstance(known, tuple)}
    own_splits, from_coco, from_flickr = [], [], []
    for picture in source.pictures():
        if isinstance(picture, Failure) or picture.split != "train":
            continue
        said = picture.fields.get("corpus_split")
        if said in EVALUATION_SPLITS:
            own_splits.append(picture.origin)
        stem = PurePosixPath(str(picture.fields.get("file_name", ""))).stem
        # A corpus that says itself that a picture is for training, as Karpathy's does, is believed.
        if said is None and ("coco_id" in picture.fields or _COCO_VAL2014.fullmatch(stem)):
            from_coco.append(picture.origin)
        if said is None and picture.fields.get("source") == "flickr30k-entities":
            from_flickr.append(picture.origin)
    if own_splits:
        raise SourceError(
            f"ingest.splits trains on {len(own_splits)} pictures that the corpus has for val or "
            f"test (the first: {shown(own_splits[0])}); take them out of train, or {ALLOW}"
        )
    if from_flickr and "flickr" not in listed:
        raise SourceError(
            f"the train split has {len(from_flickr)} pictures of Flickr30k (the first: "
            f"{shown(from_flickr[0])}), and no list says which of them are in its val and test; "
            "expected train.txt, val.txt and test.txt of Flickr30k Entities in ingest.annotations, "
            f"or ingest.exclude with dataset_flickr30k.json, or {ALLOW}"
        )
    if from_coco and "coco" not in listed:
        raise SourceError(
            f"the train split has {len(from_coco)} pictures of COCO (the first: "
            f"{shown(from_coco[0])}), some of which may be in Karpathy's val and test; expected "
            f"ingest.exclude with dataset_coco.json, which says which, or {ALLOW}"
        )
