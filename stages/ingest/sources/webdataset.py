"""Existing tars in webdataset's layout, as img2dataset writes them: a picture and a caption a key.

Members KEY.EXT with the same KEY that are consecutive are one input: KEY.jpg, KEY.jpeg, KEY.png
or KEY.webp, with KEY.txt (one caption) or KEY.json ("caption" or "captions": a text or a
list of texts) or both. Everything after the first dot of the name is EXT. Layout:
https://github.com/webdataset/webdataset and https://github.com/rom1504/img2dataset#output-format.
"""

from __future__ import annotations

import codecs
import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from boxless.errors import BoxlessError
from sharding.format.tar_scan import APART, FIRST_DOT
from sharding.tools.tar_names import other_tars
from sharding.writing.atomic import canonical_json
from stages.ingest.files import NUM_NAMES_SHOWN, PICTURE_SUFFIXES, describe_folder, open_folder
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
from stages.ingest.sources.tar_members import Member, list_members
from stages.ingest.splits import draw_split
from stages.json_text import parse_json
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

    def __init__(
        self, *, root: str, seed: int, heldout_fraction: float, prefix_keys: bool = False
    ) -> None:
        expected = "a folder with tars in webdataset's layout"
        folder = open_folder(root, field="ingest.root", expected=expected)
        tars = sorted(folder.glob("*.tar"))
        if not any(tar.is_file() for tar in tars):
            hints = "; ".join(other_tars(folder)[:NUM_NAMES_SHOWN])
            raise SourceError(
                f"ingest.root is {root!r}, where no *.tar is ({describe_folder(folder)}); expected "
                f"{expected} (not in subfolders){f'; {hints}' if hints else ''}"
            )
        self._split = functools.partial(draw_split, seed=seed, heldout_fraction=heldout_fraction)
        self._prefix_keys = prefix_keys
        self.dropped = DroppedRecords()
        self.warnings: list[str] = []
        if others := other_tars(folder):
            self.dropped.add("files that are not named *.tar", others[0], count=len(others))
            listed = "; ".join(others[:NUM_NAMES_SHOWN])
            self.warnings.append(
                f"{len(others)} files of {folder.name} look like tars and are not read, as they are "
                f"not named *.tar: {shown(listed)}"
            )
        self._inputs = [i for tar in tars for i in self._read_tar(tar)]
        self._warn_of_repeated_keys()

    def pictures(self) -> Sequence[Picture | Failure]:
        """One input a key, in the order of the tars."""
        return self._inputs

    def fingerprint(self) -> str:
        """Hash of keys and sizes of all pictures and of all that the tars say about them."""
        return inputs_fingerprint(self._inputs)

    def _read_tar(self, tar: Path) -> Iterator[Picture | Failure]:
        if not tar.is_file():
            kind = "a link that points nowhere" if tar.is_symlink() else "no file"
            reason = f"missing tar: {tar.name} is {kind}; add the tar, or remove its name"
            yield Failure(key=safe_key(tar.name), reason=shown(reason))
            return
        found = list_members(tar)
        members, links = found.files, found.links
        if found.bad_names:
            reason = "members of tars whose names are refused"
            example = f"{tar.name}: {found.bad_names[0]}"
            self.dropped.add(reason, example, count=len(found.bad_names))
        if links:
            self.dropped.add("links in tars", f"{tar.name}: {links[0]}", count=len(links))
            self.warnings.append(
                f"{tar.name} has {len(links)} links (the first: {shown(links[0])}), which are left "
                "out as webdataset does; tar --hard-dereference --dereference packs the files"
            )
        if found.devices:
            example = f"{tar.name}: {found.devices[0]}"
            self.dropped.add("devices and fifos in tars", example, count=len(found.devices))
        # As in webdataset, a name without a key, such as macOS' "._0.jpg", belongs to no sample.
        named = [member for member in members if split_name(member.name)[0]]
        if len(named) < len(members):
            keyless = [m.name for m in members if not split_name(m.name)[0]]
            self.dropped.add(
                "members of tars whose names have no key",
                f"{tar.name}: {keyless[0]}",
                count=len(keyless),
            )
        groups = [
            (key, list(group))
            for key, group in itertools.groupby(named, key=lambda m: split_name(m.name)[0])
        ]
        repeated = Counter(key for key, _ in groups)
        for key, group in groups:
            yield self._read_group(tar, key, group, is_apart=repeated[key] > 1)
        if found.damage:
            reason = f"damaged tar: {tar.name}: {found.damage}; what is before that byte is used"
            yield Failure(key=safe_key(tar.name), reason=shown(reason))

    def _read_group(
        self, tar: Path, name: str, group: list[Member], *, is_apart: bool
    ) -> Picture | Failure:
        """The members of one key, which is `name` in its tar; is_apart: it has others elsewhere."""
        key = safe_key(f"{tar.stem}/{name}" if self._prefix_keys else name)
        by_extension = {split_name(member.name)[1]: member for member in group}
        twice = [e for e, n in Counter(split_name(m.name)[1] for m in group).items() if n > 1]
        images = [by_extension[e] for e in EXTENSIONS if e in by_extension]
        if not images:
            got = ", ".join(by_extension)
            known = any(f".{extension}" in PICTURE_SUFFIXES for extension in by_extension)
            kind = "not JPEG, PNG or WebP" if known else "no picture"
            reason = f"{kind}: {tar.name} has {got} for {name}, not one of {', '.join(EXTENSIONS)}"
            return Failure(key=key, reason=shown(reason + _hint(by_extension, is_apart)))
        captions, described, notes = read_texts(by_extension)
        if not captions and is_apart:
            notes.append(f"members apart: {APART}")
        notes += [f"another picture: {shown(other.name)} left out" for other in images[1:]]
        notes += [f"member several times: {shown(e)}, of which the last is taken" for e in twice]
        return Picture(
            key=key,
            split=self._split(f"{tar.stem}/{name}" if self._prefix_keys else name),
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

    def _warn_of_repeated_keys(self) -> None:
        """Tars whose keys start over in each are one picture a key to webdataset's readers."""
        counts = Counter(i.key for i in self._inputs if isinstance(i, Picture))
        if num := sum(1 for count in counts.values() if count > 1):
            self.warnings.append(
                f"{num} keys come several times, and only the first of each is taken; where keys "
                "start over in each tar, set ingest.prefix_keys_by_tar to true"
            )


def _hint(by_extension: Mapping[str, Member], is_apart: bool) -> str:
    """Why members that people mean as one sample are none, where it is plain."""
    if is_apart:
        return f"; {APART}"
    if any(extension.endswith(tuple(f".{e}" for e in EXTENSIONS)) for extension in by_extension):
        return f"; {FIRST_DOT}"
    return ""


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
    given = [described[name] for name in ("caption", "captions") if name in described]
    return [text for one in given for text in (one if isinstance(one, list) else [one])]


def _read_json(member: Member) -> dict[str, Any]:
    content = parse_json(_read_bytes(member), parse_constant=lambda _: None)  # NaN is not JSON
    if not isinstance(content, dict):
        raise BoxlessError(f"a JSON {type(content).__name__}, expected an object")
    canonical_json(content)  # ValueError for text that could not be written again
    return content


def _read_text(member: Member) -> str:
    data = _read_bytes(member)
    is_utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if is_utf_16 else "utf-8-sig")


def _read_bytes(member: Member) -> bytes:
    if member.num_bytes > MAX_TEXT_BYTES:
        raise BoxlessError(f"{member.num_bytes} bytes; at most {MAX_TEXT_BYTES} are read")
    return member.read()


def _read_image(member: Member) -> bytes:
    try:
        return member.read()
    except OSError as error:
        raise PictureError(
            f"unreadable picture: {shown(member.name)} in {member.tar.name}: {error.strerror}"
        ) from None
