"""Boxes from an instances JSON in COCO's layout (https://cocodataset.org/#format-data): `images`
(`id`, `file_name`, `width`, `height`), `categories` (`id`, `name`), `annotations` (`image_id`,
`category_id`, `bbox`, `iscrowd`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from stages.ingest.files import read_json_object
from stages.ingest.sources.caption_files import CaptionedImage, id_of
from stages.ingest.sources.source import SourceError, shown
from stages.ingest.truth import finite_numbers

EXPECTED = "an instances file in COCO's layout, as instances_val2017.json"


@dataclass(kw_only=True)
class ImageBoxes:
    """The objects of one picture: `truth` as a sample's json has it, (width, height) of the picture
    they were drawn on where the file says so, notes on boxes that were left out, and for each
    annotation of the picture in the file's order its row in `truth`, None where it was left out."""

    size_px: tuple[int, int] | None
    truth: dict[str, list[Any]] = field(
        default_factory=lambda: {"boxes": [], "labels": [], "attributes": []}
    )
    notes: list[str] = field(default_factory=list)
    row_of: list[int | None] = field(default_factory=list)

    def renumbered(self, phrase: dict[str, Any]) -> dict[str, Any]:
        """A phrase whose `objects` count the file's annotations, by rows of `truth`."""
        rows = [self.row_of[number] for number in phrase["objects"]]
        return {**phrase, "objects": [row for row in rows if row is not None]}


@dataclass(frozen=True, kw_only=True)
class Instances:
    """Category names by rising id, and the objects by image id and by file name (without folders).

    dropped: {reason: how many annotations} of those that belong to no picture.
    """

    label_names: Sequence[str]
    of_image: dict[str, ImageBoxes]
    of_name: dict[str, ImageBoxes]
    dropped: Counter[str]


def read_instances(path: str, *, images: Sequence[CaptionedImage]) -> Instances:
    """The boxes of a file; SourceError for other files, and where no box of it can be used.

    images: the captioned pictures, whose ids must mean the same pictures; empty where pictures are
    found by their file names. Ids are compared by value (`id_of`). Boxes become xyxy. Crowd regions
    (`iscrowd`) are left out, as detectors are not trained on them; every box that is left out is
    counted with its reason.
    """
    content = read_json_object(
        path,
        field="ingest.instances",
        expected=EXPECTED,
        keys=("images", "annotations", "categories"),
        object_hook=_without_outline,
    )
    names = _category_names(content["categories"], path)
    of_image, of_name = _images(content["images"], path)
    if images:
        _check_same_pictures(content["images"], images, path)
    dropped: Counter[str] = Counter()
    for i, annotation in enumerate(content["annotations"]):
        if not isinstance(annotation, dict) or "bbox" not in annotation:
            hint = ""
            if isinstance(annotation, dict) and "caption" in annotation:
                hint = "; this looks like a captions file, which goes into ingest.captions"
            raise SourceError(
                f"ingest.instances ({path}): annotations[{i}] is {str(annotation)[:80]}; expected "
                f'an object with "image_id", "category_id" and "bbox"{hint}'
            )
        boxes = of_image.get(id_of(annotation.get("image_id")) or "")
        if boxes is None:
            dropped["boxes of a picture that the instances file does not list"] += 1
        else:
            _add_box(boxes, annotation, names)
    _check_some_box(content["annotations"], of_image, dropped, path)
    if images:
        captioned = {image.image_id for image in images}
        lost = [boxes for key, boxes in of_image.items() if key not in captioned]
        if num := sum(len(boxes.row_of) for boxes in lost):
            dropped["boxes of a picture without captions"] += num
    label_names = list(dict.fromkeys(names.values()))
    return Instances(label_names=label_names, of_image=of_image, of_name=of_name, dropped=dropped)


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    """Outlines are most of an instances file; dropped while it is parsed, they need no memory."""
    entry.pop("segmentation", None)
    return entry


def _category_names(categories: list[Any], path: str) -> dict[str, str]:
    """{id: name} by rising id."""
    pairs = []
    for i, category in enumerate(categories):
        number = id_of(category.get("id")) if isinstance(category, dict) else None
        sound = number is not None and (number.isdigit() or isinstance(category["id"], int))
        if not sound or not isinstance(category.get("name"), str):
            raise SourceError(
                f"ingest.instances ({path}): categories[{i}] is {str(category)[:80]}; expected an "
                'object with a number "id" and a "name"'
            )
        pairs.append((int(number or 0), shown(category["name"])))
    return {str(number): name for number, name in sorted(pairs)}


def _images(images: list[Any], path: str) -> tuple[dict[str, ImageBoxes], dict[str, ImageBoxes]]:
    """The pictures by id and by file name; of two with one id the later one counts."""
    of_image, of_name = {}, {}
    for i, image in enumerate(images):
        image_id = id_of(image.get("id")) if isinstance(image, dict) else None
        if image_id is None:
            raise SourceError(
                f"ingest.instances ({path}): images[{i}] is {str(image)[:80]}; expected an object "
                'with an "id" (number or text)'
            )
        width, height = image.get("width"), image.get("height")
        boxes = of_image[image_id] = ImageBoxes(size_px=None)
        if type(width) is int and type(height) is int and width > 0 and height > 0:
            boxes.size_px = (width, height)
        if isinstance(image.get("file_name"), str):
            of_name[PurePosixPath(image["file_name"]).name] = boxes
    return of_image, of_name


def _check_same_pictures(
    images: list[dict[str, Any]], captioned: Sequence[CaptionedImage], path: str
) -> None:
    """Ids join the two files, so an id that means another picture would mix up boxes in silence."""
    name_of = {id_of(image["id"]): image.get("file_name") for image in images}
    shared = [image for image in captioned if image.image_id in name_of]
    if not shared:
        raise SourceError(
            f"ingest.instances ({path}) has no image id in common with ingest.captions; expected "
            "the two files of the same pictures"
        )
    for image in shared:
        other = name_of[image.image_id]
        same = isinstance(other, str) and (
            # Pictures are re-encoded more often than renamed: p1.jpg may have become p1.png.
            PurePosixPath(other).stem == PurePosixPath(image.file_names[0]).stem
        )
        if other is not None and not same:
            raise SourceError(
                f"ingest.instances ({path}): image id {image.shown_id} is {other!r}, but "
                f"{image.file_names[0]!r} in ingest.captions; expected the two files of the same "
                "pictures"
            )


def _check_some_box(
    annotations: list[Any], of_image: dict[str, ImageBoxes], dropped: Counter[str], path: str
) -> None:
    """SourceError where the file was given and not one of its boxes can be used."""
    if any(boxes.truth["boxes"] for boxes in of_image.values()):
        return
    reasons = Counter(dropped)
    for boxes in of_image.values():
        reasons.update(note.partition(":")[0] for note in boxes.notes)
    counts = "; ".join(f"{num} x {reason}" for reason, num in reasons.most_common())
    raise SourceError(
        f"ingest.instances ({path}): none of its {len(annotations)} boxes can be used "
        f"({counts or 'it has none'}); expected boxes of single objects whose image_id is the id of a picture, or no "
        "ingest.instances"
    )


def _add_box(boxes: ImageBoxes, annotation: dict[str, Any], names: dict[str, str]) -> None:
    category = id_of(annotation.get("category_id"))
    numbers = finite_numbers(annotation["bbox"], count=4)
    boxes.row_of.append(None)
    if annotation.get("iscrowd"):
        boxes.notes.append("crowd box: left out")
    elif category not in names:
        category_text = shown(str(annotation.get("category_id")))
        boxes.notes.append(f'unknown category: {category_text} is not in "categories"')
    elif numbers is None:
        boxes.notes.append(f"box is not four numbers: {shown(str(annotation['bbox'])[:80])}")
    else:
        x, y, width, height = numbers
        boxes.row_of[-1] = len(boxes.truth["boxes"])
        boxes.truth["boxes"].append([x, y, x + width, y + height])
        boxes.truth["labels"].append(names[category or ""])
        boxes.truth["attributes"].append(None)
