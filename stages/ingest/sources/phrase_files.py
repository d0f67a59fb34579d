"""Files of phrases with the boxes they refer to: JSON lines, one a picture.

A line is `{"image_id": ..., "phrases": [[[start, end, chain, type, rows], ...], ...]}`: a list a
caption, in the order of the captions file. start and end are characters of the caption, end
exclusive; chain is the coreference chain, type what Flickr30k Entities calls it ("people", "scene",
"notvisual" ...); rows index the picture's boxes in the order of its instances file. A phrase with
several rows means several boxes; one without any is a scene, not visible or not boxed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from boxless.errors import BoxlessError
from sharding.user_paths import expand_user
from stages.ingest.sources.caption_files import id_of
from stages.ingest.sources.source import DroppedRecords, SourceError
from stages.json_text import parse_json

EXPECTED = 'JSON lines, {"image_id": ..., "phrases": [[[start, end, chain, type, rows], ...], ...]}'
_MAX_LINE_SHOWN = 60


@dataclass(frozen=True, kw_only=True)
class PhraseFile:
    """{image id: a list a caption of phrases as a sample's truth has them}, and dropped lines."""

    of_image: dict[str, list[list[dict[str, Any]]]]
    dropped: DroppedRecords = field(default_factory=DroppedRecords)


def read_phrases(path: str) -> PhraseFile:
    """The phrases of a file; broken lines are counted and named, SourceError where none is
    valid."""
    file = expand_user(path)
    if not file.is_file():
        got = "a folder" if file.is_dir() else "not there"
        raise SourceError(f"ingest.phrases is {path!r}, which is {got}; expected {EXPECTED}")
    found = PhraseFile(of_image={})
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                _read_line(line, number, found)
    if not found.of_image:
        first = "; ".join(names[0] for names in found.dropped.examples.values()) or "it is empty"
        raise SourceError(f"ingest.phrases ({path}): no valid line ({first}); expected {EXPECTED}")
    return found


def _read_line(line: bytes, number: int, found: PhraseFile) -> None:
    try:
        entry = parse_json(line)
        image_id = id_of(entry["image_id"])
        phrases = [[_phrase(phrase) for phrase in caption] for caption in entry["phrases"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        found.dropped.add("broken line of phrases", f"line {number}: {line[:_MAX_LINE_SHOWN]!r}")
        return
    if image_id is None:
        found.dropped.add("broken line of phrases", f"line {number}: no image_id")
    elif image_id in found.of_image:
        found.dropped.add("second line of phrases for a picture", f"line {number}: {image_id}")
    else:
        found.of_image[image_id] = phrases


def _phrase(phrase: Sequence[Any]) -> dict[str, Any]:
    """One phrase as a sample's truth has it; ValueError or TypeError where it is not valid."""
    start, end, chain, kind, rows = phrase
    whole = [start, end, *rows]
    if not all(type(value) is int and value >= 0 for value in whole) or not start < end:
        raise BoxlessError(f"phrase {phrase}")
    return {"start": start, "end": end, "chain": str(chain), "type": str(kind), "objects": rows}


def check_phrases(
    phrases: list[list[dict[str, Any]]], captions: Sequence[str], num_boxes: int
) -> tuple[list[list[dict[str, Any]]], list[str]]:
    """Phrases that fit the captions and boxes of their picture, and notes on those that do not.

    A list of phrases for another number of captions fits none of them.
    """
    if len(phrases) != len(captions):
        note = f"phrases dropped: for {len(phrases)} captions, the picture has {len(captions)}"
        return [[] for _ in captions], [note]
    fitted: list[list[dict[str, Any]]] = []
    notes = []
    for caption, of_caption in zip(captions, phrases, strict=True):
        fitted.append([])
        for phrase in of_caption:
            if phrase["end"] > len(caption):
                notes.append(f"phrase outside of its caption: {phrase['start']}:{phrase['end']}")
            elif any(row >= num_boxes for row in phrase["objects"]):
                notes.append(f"phrase of a box that is not there: rows {phrase['objects']}")
            else:
                fitted[-1].append(phrase)
    return fitted, notes
