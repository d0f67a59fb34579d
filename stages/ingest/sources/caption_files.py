"""Captions files: COCO's layout and Karpathy's.

COCO (https://cocodataset.org/#format-data): `images` (`id`, `file_name`) and `annotations`
(`image_id`, `caption`). Karpathy's: `stages.annotations.karpathy`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeGuard

from stages.annotations.karpathy import KarpathyError, parse_image
from stages.ingest.files import read_json_object
from stages.ingest.sources.source import DroppedRecords, SourceError, clean_caption, shown

EXPECTED = "a captions file in COCO's layout, as captions_val2017.json, or in Karpathy's"


@dataclass(frozen=True, kw_only=True)
class CaptionedImage:
    """A picture that a captions file lists.

    image_id: as `id_of` makes it comparable; shown_id: as the file has it. file_names: where the
    picture may be, relative to the folder of the pictures, the likeliest first. split: the file's
    own word, None where it has none. coco_id: Karpathy's `cocoid`.
    """

    image_id: str
    shown_id: int | str
    file_names: tuple[str, ...]
    captions: tuple[str, ...]
    split: str | None = None
    coco_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class CaptionFile:
    """The pictures of a captions file, and its faults.

    failed: (name, reason) of entries that are broken or whose id was there before; the name is the
    picture's file, or which entry it is. orphans: (image id, number of captions) of captions whose
    picture is not listed. dropped: captions of no picture. is_karpathy: the layout.
    """

    images: list[CaptionedImage]
    failed: list[tuple[str, str]]
    orphans: list[tuple[str, int]]
    dropped: DroppedRecords
    is_karpathy: bool


def id_of(value: object) -> str | None:
    """An id read from JSON as comparable text, by value whatever its type: 17, "17", 17.0 and
    "0017" are one. None where it is neither a finite number nor a text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value.is_integer() else str(value)
    text = str(value).strip()
    return str(int(text)) if text.isascii() and text.isdigit() and len(text) < 400 else text or None


def whole_number(value: object) -> int | None:
    """A whole number read from JSON, also where it is written as text ("17"); None for all else."""
    text = id_of(value)
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def read_captions(path: str) -> CaptionFile:
    """The pictures and captions of a file in either layout; SourceError for other files."""
    content = read_json_object(path, field="ingest.captions", expected=EXPECTED, keys=("images",))
    if not content["images"]:
        raise SourceError(f'ingest.captions ({path}): "images" is empty; expected {EXPECTED}')
    if any(isinstance(image, dict) and "sentences" in image for image in content["images"]):
        return _read_karpathy(content["images"], path)
    if not isinstance(content.get("annotations"), list):
        raise SourceError(
            f"ingest.captions ({path}): got keys {', '.join(sorted(content))}; expected a list "
            f'"annotations" (COCO) or "sentences" of each image (Karpathy): {EXPECTED}'
        )
    return _read_coco(content["images"], content["annotations"], path)


def _read_coco(images: list[Any], annotations: list[Any], path: str) -> CaptionFile:
    valid, broken = _valid_entries(images, _coco_fault, name_key="file_name", path=path)
    captions, dropped = _captions_by_id(annotations, path)
    listed = {id_of(image["id"]) for image in valid}
    if listed.isdisjoint(captions):
        raise SourceError(
            f"ingest.captions ({path}): not one of its {len(images)} images has one of its "
            f'{len(annotations)} annotations; expected each annotation\'s "image_id" to be the '
            '"id" of an image'
        )
    entries = [
        CaptionedImage(
            image_id=str(id_of(image["id"])),
            shown_id=image["id"],
            file_names=(image["file_name"],),
            captions=tuple(captions.get(str(id_of(image["id"])), ())),
        )
        for image in valid
    ]
    kept, duplicates = _without_duplicates(entries)
    orphans = [(key, len(texts)) for key, texts in captions.items() if key not in listed]
    return CaptionFile(
        images=kept,
        failed=[*broken, *duplicates],
        orphans=orphans,
        dropped=dropped,
        is_karpathy=False,
    )


def _captions_by_id(
    annotations: list[Any], path: str
) -> tuple[dict[str, list[str]], DroppedRecords]:
    """({image id: captions}, captions of no picture). A caption that is no text is a blank one, so
    that the others keep their numbers; SourceError where no entry is valid."""
    captions: dict[str, list[str]] = {}
    dropped = DroppedRecords()
    num_valid, first = 0, ""
    for i, annotation in enumerate(annotations):
        fault = _annotation_fault(annotation)
        image_id = id_of(annotation.get("image_id")) if isinstance(annotation, dict) else None
        if image_id is not None:
            captions.setdefault(image_id, []).append(clean_caption(annotation.get("caption")))
        else:
            dropped.add("broken entry of captions", f"annotations[{i}] {fault}")
        num_valid += not fault
        first = first or (fault and f"annotations[{i}] {fault}")
    if first and not num_valid:
        raise SourceError(f"ingest.captions ({path}): {first}")
    return captions, dropped


def _annotation_fault(annotation: Any) -> str:
    """What is wrong with an entry of COCO's `annotations`; "" for nothing."""
    if not isinstance(annotation, dict) or "caption" not in annotation:
        hint = ""
        if isinstance(annotation, dict) and "bbox" in annotation:
            hint = "; this looks like an instances file, which goes into ingest.instances"
        return f'is {str(annotation)[:80]}; expected an object with "image_id" and "caption"{hint}'
    if id_of(annotation.get("image_id")) is None:
        return (
            f'has "image_id" {annotation.get("image_id")!r}; expected the id of a picture, number '
            "or text"
        )
    return ""


def _valid_entries(
    images: list[Any], fault_of: Callable[[Any], str], *, name_key: str, path: str
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """The valid entries of `images`, and (name, reason) of the others; SourceError where none is.

    fault_of: what is wrong with an entry, "" for nothing. A broken entry is named by its file name,
    where it has one.
    """
    valid, broken = [], []
    for i, image in enumerate(images):
        fault = fault_of(image)
        if not fault:
            valid.append(image)
            continue
        name = image.get(name_key) if isinstance(image, dict) else None
        reason = shown(f"broken entry: images[{i}] {fault}")
        broken.append((name if _is_file_name(name) else f"images-{i}", reason))
    if not valid:
        fault = broken[0][1].removeprefix("broken entry: ")
        raise SourceError(f"ingest.captions ({path}): {fault}")
    return valid, broken


def _coco_fault(image: Any) -> str:
    """What is wrong with an entry of COCO's `images`; "" for nothing."""
    is_object = isinstance(image, dict)
    if is_object and _is_file_name(image.get("file_name")) and id_of(image.get("id")) is not None:
        return ""
    return (
        f'is {str(image)[:80]}; expected an object with an "id" (number or text) and a "file_name"'
    )


def _karpathy_fault(image: Any) -> str:
    """What is wrong with an entry of Karpathy's `images`; "" for nothing."""
    try:
        parse_image(image)
    except KarpathyError as error:
        return f"is broken: {error}"
    return ""


def _is_file_name(name: object) -> TypeGuard[str]:
    return isinstance(name, str) and bool(PurePosixPath(name).name)


def _read_karpathy(images: list[Any], path: str) -> CaptionFile:
    valid, broken = _valid_entries(images, _karpathy_fault, name_key="filename", path=path)
    kept, duplicates = _without_duplicates([_karpathy_image(image) for image in valid])
    return CaptionFile(
        images=kept,
        failed=[*broken, *duplicates],
        orphans=[],
        dropped=DroppedRecords(),
        is_karpathy=True,
    )


def _karpathy_image(entry: dict[str, Any]) -> CaptionedImage:
    image = parse_image(entry)
    # imgid counts the pictures of the file; the file name is what other files know a picture by.
    shown_id = PurePosixPath(image.name).stem if image.coco_id is None else image.coco_id
    return CaptionedImage(
        image_id=id_of(shown_id) or image.name,
        shown_id=shown_id if isinstance(shown_id, (int, str)) else image.name,
        file_names=image.file_names,
        # "" for what is no text: it is counted as a blank caption.
        captions=tuple(clean_caption(sentence) for sentence in image.sentences),
        split=image.split,
        coco_id=whole_number(image.coco_id),
    )


def _without_duplicates(
    entries: list[CaptionedImage],
) -> tuple[list[CaptionedImage], list[tuple[str, str]]]:
    """(the first entry of each id, (file name, reason) of the others).

    Entries of one file in two splits all stay: only with the splits is it known which one counts.
    """
    first: dict[str, CaptionedImage] = {}
    kept, duplicates = [], []
    for entry in entries:
        before = first.setdefault(entry.image_id, entry)
        if before is entry or (
            entry.split != before.split and entry.file_names[-1] == before.file_names[-1]
        ):
            kept.append(entry)
        else:
            reason = f"duplicate image id: {entry.shown_id} is already {before.file_names[0]}"
            duplicates.append((entry.file_names[0], shown(reason)))
    return kept, duplicates
