"""An entry of Karpathy's JSON: dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json.

`images` is a list of {"filename", "split", "sentences": [{"raw", ...}], and for COCO "filepath"
(the folder) and "cocoid"}. https://cs.stanford.edu/people/karpathy/deepimagesent/
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from boxless.errors import BoxlessError

EXPECTED = 'an object with "filename", "split" and a list "sentences", as dataset_coco.json has'


class KarpathyError(BoxlessError):
    """An entry that is not one; the text says which field, what was got and expected."""


@dataclass(frozen=True, kw_only=True)
class KarpathyImage:
    """A picture: its name; file_names, where it may lie below the folder of the pictures, the
    likeliest first; the file's own word for the split; each sentence's "raw", None where it is no
    text; COCO's id, as the file has it."""

    name: str
    file_names: tuple[str, ...]
    split: str
    sentences: tuple[str | None, ...]
    coco_id: Any = None


def parse_image(entry: object) -> KarpathyImage:
    """One of the file's `images`. Raises KarpathyError."""
    if not isinstance(entry, dict):
        raise KarpathyError(f"got {str(entry)[:80]}, expected {EXPECTED}")
    for field, kind in (("filename", str), ("split", str), ("sentences", list)):
        if not isinstance(entry.get(field), kind):
            got = (
                repr(entry[field])[:80]
                if field in entry
                else f"fields {', '.join(map(str, entry))}"
            )
            raise KarpathyError(f"{field}: got {got}, expected {EXPECTED}")
    name = entry["filename"]
    if not PurePosixPath(name).name:
        raise KarpathyError(f"filename: got {name!r}, expected the name of a file")
    folder = entry.get("filepath")
    return KarpathyImage(
        name=name,
        file_names=(f"{folder}/{name}", name) if isinstance(folder, str) and folder else (name,),
        split=entry["split"],
        sentences=tuple(_raw(sentence) for sentence in entry["sentences"]),
        coco_id=entry.get("cocoid"),
    )


def _raw(sentence: object) -> str | None:
    raw = sentence.get("raw") if isinstance(sentence, dict) else None
    return raw if isinstance(raw, str) else None
