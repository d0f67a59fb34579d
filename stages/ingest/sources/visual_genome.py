"""Visual Genome: region descriptions as captions with their boxes, objects as boxes with labels.

Layout: Krishna et al., IJCV 2017; https://homes.cs.washington.edu/~ranjay/visualgenome. A folder
with `region_descriptions.json` ([{"id", "regions": [{"phrase", "x", "y", "width", "height"}]}]),
`image_data.json` ([{"image_id", "width", "height", "coco_id", "flickr_id"}]) and perhaps
`objects.json` ([{"image_id", "objects": [{"object_id", "names", "x", "y", "w", "h"}]}]) and
`attributes.json` (the same with "attributes"). The pictures are `ID.jpg`, in one folder or in
VG_100K and VG_100K_2.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from stages.ingest.files import (
    describe_folder,
    open_folder,
    pictures_by_id,
    read_picture,
    size_bytes,
)
from stages.ingest.json_stream import iterate_json_list
from stages.ingest.sources.caption_files import id_of, whole_number
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
from stages.ingest.splits import SplitRule
from stages.ingest.truth import finite_numbers, stated_size

FIELD = "ingest.annotations"
EXPECTED = "Visual Genome's folder, with region_descriptions.json and image_data.json"
REGIONS, IMAGES = "region_descriptions.json", "image_data.json"
OBJECTS, ATTRIBUTES = "objects.json", "attributes.json"


class VisualGenomeSource:
    """The pictures below `root` that have region descriptions.

    Of object names the `num_labels` commonest are kept, of attributes the `num_attributes`; the
    others are counted. Raises SourceError at once where the folders are not what they should be.
    """

    def __init__(
        self,
        *,
        root: str,
        annotations: str,
        split_rule: SplitRule,
        num_labels: int,
        num_attributes: int,
    ) -> None:
        self._root = open_folder(root, field="ingest.root", expected="the folder of the pictures")
        self._folder = open_folder(annotations, field=FIELD, expected=EXPECTED)
        for name in (REGIONS, IMAGES):
            if not (self._folder / name).is_file():
                raise SourceError(
                    f"{FIELD} is {annotations!r}, with no {name} in it "
                    f"({describe_folder(self._folder)}); expected {EXPECTED}"
                )
        self._split_rule = split_rule
        self.dropped = DroppedRecords()
        self.warnings: list[str] = []
        objects = self._objects_by_image()
        self.label_names: Sequence[str] = _commonest(
            (o["label"] for several in objects.values() for o in several), num_labels
        )
        self.attribute_names: Sequence[str] = _commonest(
            (a for several in objects.values() for o in several for a in o["attributes"]),
            num_attributes,
        )
        self._inputs = self._list_inputs(objects)
        valid = [i for i in self._inputs if isinstance(i, Picture)]
        if not any(picture.size_bytes >= 0 for picture in valid):
            raise SourceError(
                f"ingest.root is {root!r}, where not one picture is that {annotations} describes "
                f"({describe_folder(self._root)}); expected pictures ID.jpg of Visual Genome"
            )

    def pictures(self) -> Sequence[Picture | Failure]:
        """One input an entry of the region descriptions, and one a picture without; by key."""
        return self._inputs

    def fingerprint(self) -> str:
        """Hash of names and sizes of all pictures and of all that the files say about them."""
        return inputs_fingerprint(self._inputs)

    def _list_inputs(self, objects: dict[str, list[dict[str, Any]]]) -> list[Picture | Failure]:
        names, inputs = pictures_by_id(self._root)
        facts = {id_of(entry.get("image_id")): entry for entry in self._entries(IMAGES)}
        labels, attributes = set(self.label_names), set(self.attribute_names)
        seen: set[str] = set()
        for entry in self._entries(REGIONS):
            image_id = id_of(entry.get("id", entry.get("image_id")))
            if image_id is None:
                self.dropped.add("regions without the id of a picture", str(entry)[:80])
            elif image_id in seen:
                inputs.append(Failure(key=safe_key(image_id), reason="duplicate image id"))
            elif image_id not in facts:
                reason = f"unknown picture: {IMAGES} does not list it"
                inputs.append(Failure(key=safe_key(image_id), reason=reason))
            else:
                own = objects.get(image_id, [])
                truth, notes = _truth(own, labels, attributes)
                name = names.get(image_id, f"{image_id}.jpg")
                regions = entry.get("regions")
                inputs.append(self._picture(image_id, name, regions, facts[image_id], truth, notes))
            seen.add(image_id or "")
        for image_id, name in names.items():
            if image_id not in seen:
                reason = f"no caption names this picture: {shown(name)}"
                inputs.append(Failure(key=safe_key(image_id), reason=reason))
        unknown = [image_id for image_id in objects if image_id not in seen]
        if unknown:
            reason = "objects of pictures without regions"
            for image_id in sorted(unknown):
                self.dropped.add(reason, image_id, count=len(objects[image_id]))
        return sorted(inputs, key=lambda i: i.key)

    def _picture(
        self,
        image_id: str,
        name: str,
        regions: Any,
        facts: dict[str, Any],
        truth: dict[str, Any],
        notes: list[str],
    ) -> Picture:
        captions = []
        for number, region in enumerate(regions if isinstance(regions, list) else []):
            said = region if isinstance(region, dict) else {}
            text = clean_caption(said.get("phrase"))
            box = finite_numbers([said.get(k) for k in ("x", "y", "width", "height")], count=4)
            captions.append(text)
            truth["phrases"].append([])
            if text and box is None:
                notes.append(f"box is not four numbers: region {number}")
            elif text and box is not None:
                x, y, width, height = box
                phrase = {"start": 0, "end": len(text), "boxes": [[x, y, x + width, y + height]]}
                truth["phrases"][-1].append(phrase)
        size_px, fault = stated_size(facts)
        if fault:
            notes.append(shown(fault))
        ids = {name: whole_number(facts.get(name)) for name in ("coco_id", "flickr_id")}
        return Picture(
            key=safe_key(image_id),
            split=self._split_rule.of(None, group=image_id),
            read=functools.partial(read_picture, self._root, name),
            captions=tuple(captions),
            fields={
                "image_id": int(image_id) if image_id.isdigit() else shown(image_id),
                "source": "visual-genome",
                "file_name": shown(name),
                **{name: value for name, value in ids.items() if value is not None},
            },
            truth=truth,
            size_px=size_px,
            origin=name,
            size_bytes=size_bytes(self._root, name),
            notes=tuple(notes),
        )

    def _objects_by_image(self) -> dict[str, list[dict[str, Any]]]:
        """{image id: objects with label, box (x, y, w, h) and attributes}; {} without objects."""
        if not (self._folder / OBJECTS).is_file():
            self.warnings.append(f"{FIELD} has no {OBJECTS}: no boxes to train a teacher on")
            return {}
        attributes = self._attributes_by_object()
        found: dict[str, list[dict[str, Any]]] = {}
        for entry in self._entries(OBJECTS):
            image_id = id_of(entry.get("image_id", entry.get("id")))
            if image_id is None or not isinstance(entry.get("objects"), list):
                self.dropped.add("objects without the id of a picture", str(entry)[:80])
                continue
            own = found.setdefault(image_id, [])
            for one in entry["objects"]:
                names = one.get("names") if isinstance(one, dict) else None
                box = finite_numbers([one.get(k) for k in "xywh"], count=4) if names else None
                if box is None or not isinstance(names, list) or not _text(names[:1]):
                    self.dropped.add("objects without a name or a box", f"{image_id}: {one}")
                    continue
                own.append(
                    {
                        "label": _text(names[:1])[0],
                        "box": box,
                        "attributes": attributes.get(one.get("object_id"), ()),
                    }
                )
        return found

    def _attributes_by_object(self) -> dict[Any, tuple[str, ...]]:
        if not (self._folder / ATTRIBUTES).is_file():
            return {}
        found: dict[Any, tuple[str, ...]] = {}
        for entry in self._entries(ATTRIBUTES):
            several = entry.get("attributes")
            for one in several if isinstance(several, list) else []:
                if isinstance(one, dict) and isinstance(one.get("object_id"), int):
                    found[one["object_id"]] = tuple(_text(one.get("attributes")))
                else:
                    self.dropped.add("attributes without the id of an object", str(one)[:80])
        return found

    def _entries(self, name: str) -> Iterator[dict[str, Any]]:
        """The objects of a JSON list; entries that are something else are counted."""
        path = self._folder / name
        for entry in iterate_json_list(path, field=FIELD, expected=f"Visual Genome's {name}"):
            if isinstance(entry, dict):
                yield entry
            else:
                self.dropped.add(f"entries of {name} that are not objects", str(entry)[:80])


def _truth(
    objects: list[dict[str, Any]], labels: set[str], attributes: set[str]
) -> tuple[dict[str, Any], list[str]]:
    """A sample's truth of the objects with a kept label, and a note on the others."""
    kept = [one for one in objects if one["label"] in labels]
    notes = []
    if len(kept) < len(objects):
        notes.append(f"objects with rare names: {len(objects) - len(kept)} left out")
    boxes = [[x, y, x + width, y + height] for x, y, width, height in (o["box"] for o in kept)]
    return {
        "boxes": boxes,
        "labels": [one["label"] for one in kept],
        "attributes": [
            next((name for name in one["attributes"] if name in attributes), None) for one in kept
        ],
        "phrases": [],
    }, notes


def _text(values: Any) -> list[str]:
    """The names in a list, in small letters and without blanks around them."""
    texts = (
        [shown(v).strip().lower() for v in values if isinstance(v, str)]
        if isinstance(values, list)
        else []
    )
    return [text for text in texts if text]


def _commonest(names: Iterator[str], most: int) -> list[str]:
    """The commonest names, sorted; of equally common ones the first of the alphabet."""
    counts = sorted(Counter(names).items(), key=lambda item: (-item[1], item[0]))
    return sorted(name for name, _ in counts[:most])
