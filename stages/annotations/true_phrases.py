"""The true boxes of a phrase, out of the `truth` of a sample's json.

`truth["phrases"]` is a list a caption of {"start", "end" (characters, end exclusive)} with
"objects", rows of truth["boxes"], or with "boxes" of its own (xyxy, pixels of the upright picture);
shards of version 0.2 and before have one row as "object".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def object_rows(phrase: Mapping[str, Any]) -> list[int]:
    """The rows of truth["boxes"] that a phrase means; [] where it means none, or its own boxes."""
    if "object" in phrase:
        return [phrase["object"]]
    return list(phrase.get("objects", []))


def boxes_of_phrase(truth: Mapping[str, Any], phrase: Mapping[str, Any]) -> list[Sequence[float]]:
    """The boxes that a phrase means; [] for a scene, or what is not visible or not boxed."""
    return [truth["boxes"][row] for row in object_rows(phrase)] + list(phrase.get("boxes", []))
