"""Names of the features' classes and attributes, by the numbers that the files give them.

Three layouts: bottom-up attention's objects_vocab.txt and attributes_vocab.txt (a class a line,
synonyms parted by commas, background left out), COCO's "categories" (`id`, `name`), and VinVL's
labelmap, VG-SGG-dicts-vgoi6-clipped.json ("label_to_idx" and "attribute_to_idx", from 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxless.errors import BoxlessError
from stages.distill.precomputed.formats.record import FeaturesError
from stages.json_text import parse_json

BACKGROUND = ("__background__", "background", "__no_attribute__")
UNLABELLED = "object"
_MAX_BYTES = 1 << 26


@dataclass(frozen=True, kw_only=True)
class Names:
    """Names by our numbers, 0-based without background, and how a file's own ones map to ours.

    of_name: {name: ours}. of_number: {a category's id: ours}; of a text file the ids are the lines'
    numbers from 1, as COCO counts.
    """

    names: tuple[str, ...]
    of_name: Mapping[str, int]
    of_number: Mapping[int, int]


def read_names(path: str, *, field: str, section: str) -> Names:
    """The names in a file; FeaturesError, beginning with `field`, where it is no such file.

    section: "label" or "attribute", the part of a VinVL labelmap.
    """
    where = f"{field} is {path!r}"
    try:
        data = Path(path).read_bytes()[: _MAX_BYTES + 1]
    except OSError as error:
        raise FeaturesError(
            f"{where}: {error.strerror}; expected a file of names, as objects_vocab.txt"
        ) from None
    try:
        if len(data) > _MAX_BYTES:
            raise BoxlessError(f"more than {_MAX_BYTES} bytes")
        text = data.decode("utf-8-sig")
        pairs = _from_json(parse_json(text), section) if path.endswith(".json") else _from(text)
    except (ValueError, RecursionError) as error:
        raise FeaturesError(f"{where}: {error}; expected one name a line, or JSON") from None
    names = tuple(name for _, name in pairs)
    return Names(
        names=names,
        of_name=_numbers_of(names),
        of_number={theirs: number for number, (theirs, _) in enumerate(pairs)},
    )


def _numbers_of(names: tuple[str, ...]) -> dict[str, int]:
    """{name, and each of its synonyms: number}; of two that share one, the first has it."""
    numbers = {name: number for number, name in reversed(list(enumerate(names)))}
    for number, name in enumerate(names):
        for synonym in name.split(","):
            numbers.setdefault(synonym.strip(), number)
    return numbers


def unlabelled() -> Names:
    """The names for files without classes: one that says nothing."""
    return Names(names=(UNLABELLED,), of_name={UNLABELLED: 0}, of_number={1: 0})


def _from(text: str) -> list[tuple[int, str]]:
    """(number from 1, name) of a text file, a first line that names the background left out."""
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if lines and lines[0].lower() in BACKGROUND:
        lines = lines[1:]
    if not lines:
        raise BoxlessError("no names in it")
    if "" in lines:
        raise BoxlessError(f"line {lines.index('') + 1} is empty")
    return list(enumerate(lines, 1))


def _from_json(content: Any, section: str) -> list[tuple[int, str]]:
    """(their number, name) by rising number."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(content, dict) and isinstance(content.get(f"{section}_to_idx"), dict):
        pairs = [(number, name) for name, number in content[f"{section}_to_idx"].items()]
    elif isinstance(content, dict) and isinstance(content.get("categories"), list):
        pairs = [(c.get("id"), c.get("name")) for c in content["categories"] if isinstance(c, dict)]
    if not pairs:
        raise BoxlessError(f'neither "categories" nor "{section}_to_idx" in it')
    for number, name in pairs:
        if type(number) is not int or not isinstance(name, str) or not name.strip():
            raise BoxlessError(f"{name!r:.40} with the number {number!r:.40} in it")
    kept = sorted((number, name) for number, name in pairs if name.lower() not in BACKGROUND)
    if len({number for number, _ in kept}) != len(kept):
        raise BoxlessError("two names have one number")
    return kept
