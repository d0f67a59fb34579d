"""Boxes from an instances JSON in COCO's format; reached from `stages.ingest.sources.coco`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from stages.ingest.files import read_json_object
from stages.ingest.sources.source import SourceError, shown
from stages.ingest.truth import finite_numbers

EXPECTED = "an instances file in COCO's format, as instances_val2017.json"


@dataclass(kw_only=True)
class ImageBoxes:
    """The objects of one picture: `truth` as a sample's json has it, (width, height) of the picture
    they were drawn on where the file says so, and notes on boxes that were left out."""

    size_px: tuple[int, int] | None
    truth: dict[str, list[Any]] = field(
        default_factory=lambda: {"boxes": [], "labels": [], "attributes": []}
    )
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Instances:
    """Category names by rising id, and the objects by image id."""

    label_names: Sequence[str]
    of_image: dict[Any, ImageBoxes]


def read_instances(path: str, *, images: Sequence[dict[str, Any]]) -> Instances:
    """The boxes for `images` (entries of the captions file); SourceError for other files.

    Boxes become xyxy. Crowd regions (`iscrowd`) are left out, as detectors are not trained on them.
    """
    content = read_json_object(
        path,
        field="ingest.instances",
        expected=EXPECTED,
        keys=("images", "annotations", "categories"),
        object_hook=_without_outline,
    )
    names = _category_names(content["categories"], path)
    of_image = _images_by_id(content["images"], path)
    _check_same_pictures(content["images"], images, path)
    for i, annotation in enumerate(content["annotations"]):
        if not isinstance(annotation, dict) or "bbox" not in annotation:
            hint = ""
            if isinstance(annotation, dict) and "caption" in annotation:
                hint = "; this looks like a captions file, which goes into ingest.captions"
            raise SourceError(
                f"ingest.instances ({path}): annotations[{i}] is {str(annotation)[:80]}; expected "
                f'an object with "image_id", "category_id" and "bbox"{hint}'
            )
        image_id = annotation.get("image_id")
        boxes = of_image.get(image_id) if is_id(image_id) else None
        if boxes is not None and not annotation.get("iscrowd"):
            _add_box(boxes, annotation, names)
    return Instances(label_names=list(dict.fromkeys(names.values())), of_image=of_image)


def is_id(value: object) -> bool:
    """Whether a value read from JSON can be an id: a number or a text."""
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    """Outlines are most of an instances file; dropped while it is parsed, they need no memory."""
    entry.pop("segmentation", None)
    return entry


def _category_names(categories: list[Any], path: str) -> dict[Any, str]:
    for i, category in enumerate(categories):
        sound = isinstance(category, dict) and isinstance(category.get("id"), int)
        if not sound or not isinstance(category.get("name"), str):
            raise SourceError(
                f"ingest.instances ({path}): categories[{i}] is {str(category)[:80]}; expected an "
                'object with a number "id" and a "name"'
            )
    return {c["id"]: shown(c["name"]) for c in sorted(categories, key=lambda c: c["id"])}


def _images_by_id(images: list[Any], path: str) -> dict[Any, ImageBoxes]:
    of_image = {}
    for i, image in enumerate(images):
        if not isinstance(image, dict) or not is_id(image.get("id")):
            raise SourceError(
                f"ingest.instances ({path}): images[{i}] is {str(image)[:80]}; expected an object "
                'with an "id" (number or text)'
            )
        width, height = image.get("width"), image.get("height")
        boxes = of_image[image["id"]] = ImageBoxes(size_px=None)
        if isinstance(width, int) and isinstance(height, int):
            boxes.size_px = (width, height)
    return of_image


def _check_same_pictures(
    images: list[dict[str, Any]], captioned: Sequence[dict[str, Any]], path: str
) -> None:
    """Ids join the two files, so an id that means another picture would mix up boxes in silence.

    Of captioned images with one id only the first is looked at: the others fail as duplicates.
    """
    name_of = {image["id"]: image.get("file_name") for image in images}
    first = {image["id"]: image for image in reversed(captioned)}
    shared = [image for image in first.values() if image["id"] in name_of]
    if not shared:
        raise SourceError(
            f"ingest.instances ({path}) has no image id in common with ingest.captions; expected "
            "the two files of the same pictures"
        )
    for image in shared:
        other = name_of[image["id"]]
        same = isinstance(other, str) and (
            PurePosixPath(other).name == PurePosixPath(image["file_name"]).name
        )
        if other is not None and not same:
            raise SourceError(
                f"ingest.instances ({path}): image id {image['id']} is {other!r}, but "
                f"{image['file_name']!r} in ingest.captions; expected the two files of the same "
                "pictures"
            )


def _add_box(boxes: ImageBoxes, annotation: dict[str, Any], names: dict[Any, str]) -> None:
    bbox, category = annotation["bbox"], annotation.get("category_id")
    if not isinstance(category, int) or category not in names:
        boxes.notes.append(f'unknown category: {shown(str(category))} is not in "categories"')
        return
    numbers = finite_numbers(bbox, count=4)
    if numbers is None:
        boxes.notes.append(f"box is not four numbers: {shown(str(bbox)[:80])}")
        return
    x, y, width, height = numbers
    boxes.truth["boxes"].append([x, y, x + width, y + height])
    boxes.truth["labels"].append(names[category])
    boxes.truth["attributes"].append(None)
