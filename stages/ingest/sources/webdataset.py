"""Existing tars in webdataset's layout, as img2dataset writes them: a picture and a caption a key.

Reached from `stages.ingest.run` when `ingest.source` is "webdataset". Members KEY.EXT with the
same KEY that follow each other are one input: KEY.jpg, KEY.jpeg, KEY.png or KEY.webp, with KEY.txt (one
caption) or KEY.json ("caption": text, or "captions": a list of texts) or both. Everything after the
first dot of the name is EXT. Layout: https://github.com/webdataset/webdataset and
https://github.com/rom1504/img2dataset#output-format.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sharding.writing.atomic import canonical_json
from stages.ingest.files import PICTURE_SUFFIXES, describe_folder, open_folder
from stages.ingest.sources.source import (
    Failure,
    Picture,
    SourceError,
    clean_caption,
    inputs_fingerprint,
    safe_key,
    shown,
)
from stages.ingest.sources.tar_members import Member, list_members
from stages.ingest.splits import draw_split
from stages.picture import PictureError

EXTENSIONS = ("jpg", "jpeg", "png", "webp")
MAX_TEXT_BYTES = 1 << 20


class WebdatasetSource:
    """The pictures in all `*.tar` of the folder `root`, tars in the order of their names.

    Of a damaged tar all that lies before the damage is used; the rest is one input that failed.
    Raises SourceError at once where there is no tar.
    """

    label_names: Sequence[str] = ()
    attribute_names: Sequence[str] = ()
    dropped: Mapping[str, int] = {}
    warnings: Sequence[str] = ()

    def __init__(self, *, root: str, seed: int, heldout_fraction: float) -> None:
        expected = "a folder with tars in webdataset's layout"
        folder = open_folder(root, field="ingest.root", expected=expected)
        tars = sorted(path for path in folder.glob("*.tar") if path.is_file())
        if not tars:
            raise SourceError(
                f"ingest.root is {root!r}, where no *.tar is ({describe_folder(folder)}); expected "
                f"{expected} (not in subfolders)"
            )
        self._split = functools.partial(draw_split, seed=seed, heldout_fraction=heldout_fraction)
        self._inputs = [i for tar in tars for i in self._read_tar(tar)]

    def pictures(self) -> Sequence[Picture | Failure]:
        """One input a key, in the order of the tars."""
        return self._inputs

    def fingerprint(self) -> str:
        """Hash of keys and sizes of all pictures and of all that the tars say about them."""
        return inputs_fingerprint(self._inputs)

    def _read_tar(self, tar: Path) -> Iterator[Picture | Failure]:
        members, damage = list_members(tar)
        for key, group in itertools.groupby(members, key=lambda member: split_name(member.name)[0]):
            yield self._read_group(tar, key, list(group))
        if damage:
            reason = f"damaged tar: {tar.name}: {damage}; what is before that byte is used"
            yield Failure(key=safe_key(tar.name), reason=shown(reason))

    def _read_group(self, tar: Path, name: str, group: list[Member]) -> Picture | Failure:
        """The members of one key, which is `name` in its tar."""
        by_extension = {split_name(member.name)[1]: member for member in group}
        images = [by_extension[e] for e in EXTENSIONS if e in by_extension]
        if not images:
            got = ", ".join(by_extension)
            known = any(f".{extension}" in PICTURE_SUFFIXES for extension in by_extension)
            kind = "not JPEG, PNG or WebP" if known else "no picture"
            reason = f"{kind}: {tar.name} has {got} for {name}, not one of {', '.join(EXTENSIONS)}"
            return Failure(key=safe_key(name), reason=shown(reason))
        captions, described, notes = read_texts(by_extension)
        notes += [f"another picture: {shown(other.name)} left out" for other in images[1:]]
        return Picture(
            key=safe_key(name),
            split=self._split(name),
            read=functools.partial(_read_image, images[0]),
            captions=tuple(captions),
            fields={
                "image_id": shown(name),
                "source": "webdataset",
                "tar": shown(tar.name),
                "described": described,
            },
            origin=f"{tar.name} {name}",
            size_bytes=images[0].num_bytes,
            notes=tuple(notes),
        )


def split_name(member: str) -> tuple[str, str]:
    """(key, extension) of a member's name, parted at the first dot after the last slash.

    "./a/b.seg.PNG" is ("a/b", "seg.png"); webdataset's rule, extensions in small letters.
    """
    folder, slash, name = member.removeprefix("./").rpartition("/")
    stem, _, extension = name.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def read_texts(by_extension: dict[str, Member]) -> tuple[list[str], dict[str, Any], list[str]]:
    """(captions, content of the json, notes) of a key; what cannot be read is noted.

    A caption that txt and json both have counts once.
    """
    captions: list[str] = []
    described: dict[str, Any] = {}
    notes: list[str] = []
    if "txt" in by_extension:
        try:
            captions.append(clean_caption(_read_text(by_extension["txt"])))
        except (OSError, ValueError) as error:
            notes.append(shown(f"unreadable text: {by_extension['txt'].name}: {error}"))
    if "json" in by_extension:
        try:
            described = _read_json(by_extension["json"])
        except (OSError, ValueError, RecursionError) as error:
            notes.append(shown(f"unreadable text: {by_extension['json'].name}: {error}"))
        captions += [clean_caption(caption) for caption in _captions_in(described)]
    return list(dict.fromkeys(captions)), described, notes


def _captions_in(described: dict[str, Any]) -> list[Any]:
    several = described.get("captions", [])
    one = [described["caption"]] if "caption" in described else []
    return one + (several if isinstance(several, list) else [several])


def _read_json(member: Member) -> dict[str, Any]:
    content = json.loads(_read_text(member), parse_constant=lambda _: None)  # NaN is not JSON
    if not isinstance(content, dict):
        raise ValueError(f"a JSON {type(content).__name__}, expected an object")
    canonical_json(content)  # ValueError for text that could not be written again
    return content


def _read_text(member: Member) -> str:
    if member.num_bytes > MAX_TEXT_BYTES:
        raise ValueError(f"{member.num_bytes} bytes; at most {MAX_TEXT_BYTES} are read")
    return member.read().decode()


def _read_image(member: Member) -> bytes:
    try:
        return member.read()
    except OSError as error:
        raise PictureError(
            f"unreadable picture: {shown(member.name)} in {member.tar.name}: {error.strerror}"
        ) from None
