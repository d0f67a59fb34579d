"""Captions files: COCO's layout and Karpathy's.

COCO (https://cocodataset.org/#format-data): `images` (`id`, `file_name`) and `annotations`
(`image_id`, `caption`). Karpathy's: `stages.karpathy_file`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from stages.ingest.files import read_json_object
from stages.ingest.sources.source import SourceError, clean_caption, shown
from stages.karpathy_file import KarpathyError, parse_image

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

    duplicates: (file name, reason) of entries whose id was there before. orphans: (image id, number
    of captions) of captions whose picture is not listed. is_karpathy: the layout.
    """

    images: list[CaptionedImage]
    duplicates: list[tuple[str, str]]
    orphans: list[tuple[str, int]]
    is_karpathy: bool


def id_of(value: object) -> str | None:
    """An id read from JSON as comparable text, by value whatever its type: 17, "17", 17.0 and
    "0017" are one. None where it is neither a number nor a text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else str(value)
    text = str(value).strip()
    return str(int(text)) if text.isascii() and text.isdigit() and len(text) < 400 else text or None


def read_captions(path: str) -> CaptionFile:
    """The pictures and captions of a file in either layout; SourceError for other files."""
    content = read_json_object(path, field="ingest.captions", expected=EXPECTED, keys=("images",))
    if not content["images"]:
        raise SourceError(f'ingest.captions ({path}): "images" is empty; expected {EXPECTED}')
    first = content["images"][0]
    if isinstance(first, dict) and "sentences" in first:
        return _read_karpathy(content["images"], path)
    if not isinstance(content.get("annotations"), list):
        raise SourceError(
            f"ingest.captions ({path}): got keys {', '.join(sorted(content))}; expected a list "
            f'"annotations" (COCO) or "sentences" of each image (Karpathy): {EXPECTED}'
        )
    return _read_coco(content["images"], content["annotations"], path)


def _read_coco(images: list[Any], annotations: list[Any], path: str) -> CaptionFile:
    for i, image in enumerate(images):
        name = image.get("file_name") if isinstance(image, dict) else None
        if not isinstance(name, str) or not PurePosixPath(name).name or not id_of(image.get("id")):
            raise SourceError(
                f"ingest.captions ({path}): images[{i}] is {str(image)[:80]}; expected an object "
                'with an "id" (number or text) and a "file_name"'
            )
    captions = _captions_by_id(annotations, path)
    listed = {id_of(image["id"]) for image in images}
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
        for image in images
    ]
    kept, duplicates = _without_duplicates(entries)
    orphans = [(key, len(texts)) for key, texts in captions.items() if key not in listed]
    return CaptionFile(images=kept, duplicates=duplicates, orphans=orphans, is_karpathy=False)


def _captions_by_id(annotations: list[Any], path: str) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for i, annotation in enumerate(annotations):
        if not isinstance(annotation, dict) or "caption" not in annotation:
            hint = ""
            if isinstance(annotation, dict) and "bbox" in annotation:
                hint = "; this looks like an instances file, which goes into ingest.instances"
            raise SourceError(
                f"ingest.captions ({path}): annotations[{i}] is {str(annotation)[:80]}; expected "
                f'an object with "image_id" and "caption"{hint}'
            )
        image_id = id_of(annotation.get("image_id"))
        if image_id is None:
            raise SourceError(
                f'ingest.captions ({path}): annotations[{i}] has "image_id" '
                f"{annotation.get('image_id')!r}; expected the id of a picture, number or text"
            )
        captions.setdefault(image_id, []).append(clean_caption(annotation["caption"]))
    return captions


def _read_karpathy(images: list[Any], path: str) -> CaptionFile:
    entries = [
        _karpathy_image(image, f"ingest.captions ({path}): images[{i}]")
        for i, image in enumerate(images)
    ]
    kept, duplicates = _without_duplicates(entries)
    return CaptionFile(images=kept, duplicates=duplicates, orphans=[], is_karpathy=True)


def _karpathy_image(entry: Any, where: str) -> CaptionedImage:
    try:
        image = parse_image(entry)
    except KarpathyError as error:
        raise SourceError(f"{where}: {error}") from None
    # imgid counts the pictures of the file; the file name is what other files know a picture by.
    shown_id = PurePosixPath(image.name).stem if image.coco_id is None else image.coco_id
    return CaptionedImage(
        image_id=id_of(shown_id) or image.name,
        shown_id=shown_id if isinstance(shown_id, (int, str)) else image.name,
        file_names=image.file_names,
        # "" for what is no text: it is counted as a blank caption.
        captions=tuple(clean_caption(sentence) for sentence in image.sentences),
        split=image.split,
        coco_id=image.coco_id if isinstance(image.coco_id, int) else None,
    )


def _without_duplicates(
    entries: list[CaptionedImage],
) -> tuple[list[CaptionedImage], list[tuple[str, str]]]:
    """(the first entry of each id, (file name, reason) of the others)."""
    first: dict[str, CaptionedImage] = {}
    duplicates = []
    for entry in entries:
        before = first.setdefault(entry.image_id, entry)
        if before is not entry:
            reason = f"duplicate image id: {entry.shown_id} is already {before.file_names[0]}"
            duplicates.append((entry.file_names[0], shown(reason)))
    return list(first.values()), duplicates
