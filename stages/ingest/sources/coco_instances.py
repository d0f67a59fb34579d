"""Boxes from an instances JSON in COCO's layout (https://cocodataset.org/#format-data): `images`
(`id`, `file_name`, `width`, `height`), `categories` (`id`, `name`), `annotations` (`image_id`,
`category_id`, `bbox`, `iscrowd`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from stages.ingest.files import read_json_object
from stages.ingest.sources.caption_files import CaptionedImage, id_of
from stages.ingest.sources.source import DroppedRecords, SourceError, shown
from stages.ingest.truth import finite_numbers, stated_size

_NO_CROWD = ("0", "false", "False")
"""Texts for 0, as exporters of labelling tools write it."""
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

    others: {image id: note} of ids that mean another picture than in the captions, whose boxes are
    left out. dropped: broken entries, and boxes that belong to no picture.
    """

    label_names: Sequence[str]
    of_image: dict[str, ImageBoxes]
    of_name: dict[str, ImageBoxes]
    others: dict[str, str]
    dropped: DroppedRecords


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
    dropped = DroppedRecords()
    names = _category_names(content["categories"], dropped, path)
    listed = _listed_images(content["images"], dropped, path)
    of_image = {image_id: _image_boxes(image) for image_id, image in listed.items()}
    of_name = {
        PurePosixPath(image["file_name"]).name: of_image[image_id]
        for image_id, image in listed.items()
        if isinstance(image.get("file_name"), str)
    }
    others = _other_pictures(listed, images, path) if images else {}
    _check_some_annotation(content["annotations"], path)
    for i, annotation in enumerate(content["annotations"]):
        if not isinstance(annotation, dict):
            dropped.add("broken entry of boxes", f"annotations[{i}] is {str(annotation)[:80]}")
            continue
        image_id = id_of(annotation.get("image_id")) or ""
        if image_id in of_image:
            _add_box(of_image[image_id], annotation, names)
        else:
            reason = "boxes of a picture that the instances file does not list"
            dropped.add(reason, f"annotations[{i}]: {annotation.get('image_id')!r}")
    _check_some_box(content["annotations"], of_image, dropped, path)
    if images:
        for image_id in sorted(of_image.keys() - {image.image_id for image in images}):
            if num := len(of_image[image_id].row_of):
                dropped.add("boxes of a picture without captions", image_id, count=num)
    label_names = list(dict.fromkeys(names.values()))
    return Instances(
        label_names=label_names,
        of_image={key: boxes for key, boxes in of_image.items() if key not in others},
        of_name=of_name,
        others=others,
        dropped=dropped,
    )


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    """Outlines are most of an instances file; dropped while it is parsed, they need no memory."""
    entry.pop("segmentation", None)
    return entry


def _category_names(categories: list[Any], dropped: DroppedRecords, path: str) -> dict[str, str]:
    """{id: name} by rising id, of two with one id the first; SourceError where none is valid."""
    pairs: dict[int, str] = {}
    faults = []
    for i, category in enumerate(categories):
        number = id_of(category.get("id")) if isinstance(category, dict) else None
        valid = number is not None and (number.isdigit() or isinstance(category["id"], int))
        if not valid or not isinstance(category.get("name"), str) or not category["name"].strip():
            faults.append(f"categories[{i}] is {str(category)[:80]}")
            dropped.add("broken category", faults[-1])
        elif pairs.setdefault(int(number or 0), shown(category["name"])) != category["name"]:
            dropped.add("second category of one id", f"categories[{i}] is {str(category)[:80]}")
    if faults and not pairs:
        raise SourceError(
            f"ingest.instances ({path}): {faults[0]}; expected an object with a number "
            '"id" and a "name"'
        )
    return {str(number): name for number, name in sorted(pairs.items())}


def _listed_images(
    images: list[Any], dropped: DroppedRecords, path: str
) -> dict[str, dict[str, Any]]:
    """{id: entry}, of two with one id the first; SourceError where none is valid."""
    listed: dict[str, dict[str, Any]] = {}
    faults = []
    for i, image in enumerate(images):
        image_id = id_of(image.get("id")) if isinstance(image, dict) else None
        if image_id is None:
            faults.append(f"images[{i}] is {str(image)[:80]}")
            dropped.add("broken entry of a picture with boxes", faults[-1])
        elif listed.setdefault(image_id, image) != image:
            dropped.add("second entry of a picture with boxes", f"images[{i}]: {image_id}")
    if faults and not listed:
        raise SourceError(
            f'ingest.instances ({path}): {faults[0]}; expected an object with an "id" '
            "(number or text)"
        )
    return listed


def _image_boxes(image: Mapping[str, Any]) -> ImageBoxes:
    """No box yet, and a note where the size is none."""
    size_px, fault = stated_size(image)
    return ImageBoxes(size_px=size_px, notes=[shown(fault)] if fault else [])


def _other_pictures(
    listed: Mapping[str, Mapping[str, Any]], captioned: Sequence[CaptionedImage], path: str
) -> dict[str, str]:
    """{image id: note} of ids that mean another picture here than in the captions: ids join the two
    files, so boxes would be mixed up in silence. SourceError where most do, or no id is in both."""
    shared = [image for image in captioned if image.image_id in listed]
    if not shared:
        raise SourceError(
            f"ingest.instances ({path}) has no image id in common with ingest.captions; expected "
            "the two files of the same pictures"
        )
    others, first = {}, ""
    for image in shared:
        other = listed[image.image_id].get("file_name")
        same = isinstance(other, str) and (
            # Pictures are re-encoded more often than renamed: p1.jpg may have become p1.png.
            PurePosixPath(other).stem == PurePosixPath(image.file_names[0]).stem
        )
        if other is not None and not same:
            found = shown(f"image id {image.shown_id} is {other!r}, but {image.file_names[0]!r}")
            first = first or found
            others[image.image_id] = f"boxes of another picture: {found} in ingest.captions"
    if 2 * len(others) > len(shared):
        raise SourceError(
            f"ingest.instances ({path}): {first} in ingest.captions; expected the two files of the "
            "same pictures"
        )
    return others


def _check_some_annotation(annotations: list[Any], path: str) -> None:
    """SourceError where none of the entries has a box."""
    if not annotations or any(isinstance(a, dict) and "bbox" in a for a in annotations):
        return
    first = annotations[0]
    hint = ""
    if isinstance(first, dict) and "caption" in first:
        hint = "; this looks like a captions file, which goes into ingest.captions"
    raise SourceError(
        f"ingest.instances ({path}): annotations[0] is {str(first)[:80]}; expected an object with "
        f'"image_id", "category_id" and "bbox"{hint}'
    )


def _check_some_box(
    annotations: list[Any], of_image: dict[str, ImageBoxes], dropped: DroppedRecords, path: str
) -> None:
    """SourceError where the file was given and not one of its boxes can be used."""
    if any(boxes.truth["boxes"] for boxes in of_image.values()):
        return
    reasons: Counter[str] = Counter(dict(dropped))
    for boxes in of_image.values():
        reasons.update(note.partition(":")[0] for note in boxes.notes)
    counts = "; ".join(f"{num} x {reason}" for reason, num in reasons.most_common())
    raise SourceError(
        f"ingest.instances ({path}): none of its {len(annotations)} boxes can be used "
        f"({counts or 'it has none'}); expected boxes of single objects whose image_id is the id of a "
        "picture, or no ingest.instances"
    )


def _add_box(boxes: ImageBoxes, annotation: dict[str, Any], names: dict[str, str]) -> None:
    category = id_of(annotation.get("category_id"))
    numbers = finite_numbers(annotation.get("bbox"), count=4)
    boxes.row_of.append(None)
    if annotation.get("iscrowd") and id_of(annotation["iscrowd"]) not in _NO_CROWD:
        boxes.notes.append("crowd box: left out")
    elif category not in names:
        category_text = shown(str(annotation.get("category_id")))
        boxes.notes.append(f'unknown category: {category_text} is not in "categories"')
    elif numbers is None:
        boxes.notes.append(f"box is not four numbers: {shown(str(annotation.get('bbox'))[:80])}")
    else:
        x, y, width, height = numbers
        boxes.row_of[-1] = len(boxes.truth["boxes"])
        boxes.truth["boxes"].append([x, y, x + width, y + height])
        boxes.truth["labels"].append(names[category or ""])
        boxes.truth["attributes"].append(None)
