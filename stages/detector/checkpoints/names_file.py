"""Names of labels or attributes from a file, which checkpoints do not hold.

A text file has a name a line, synonyms with commas between and the leading one first, as Visual
Genome's objects_vocab.txt and attributes_vocab.txt have them; a .json file has a list of such
names. The place is the number; the background has none.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from stages.detector.checkpoints.checkpoint_error import CheckpointError
from stages.json_text import parse_json

_BACKGROUNDS = {"__background__", "background", "__no_attribute__"}


def read_names(path: Path) -> list[str]:
    """The names by number, blanks around them and around commas taken off.

    Raises CheckpointError for a file that is none of the two, is not UTF-8, or has blank, doubled
    or background's names.
    """
    names = [",".join(part.strip() for part in name.split(",")) for name in _entries(path)]
    if not names:
        raise CheckpointError(f"{path}: got no names, expected one a line")
    blank = [number for number, name in enumerate(names, 1) if not name.replace(",", "")]
    if blank:
        raise CheckpointError(
            f"{path}: got no name in place {_some(blank)} of {len(names)}, expected one in each; "
            "write the missing ones, as the place is the label's number"
        )
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise CheckpointError(
            f"{path}: got {_some(doubled)} more than once, expected each name once: is it the list "
            "of these weights?"
        )
    if names[0] in _BACKGROUNDS:
        raise CheckpointError(
            f"{path}: got {names[0]!r} as the first name, expected labels alone; take it out, the "
            "background is not a label here"
        )
    return names


def _entries(path: Path) -> list[str]:
    """The names as they are in the file."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: got {error}, expected a file of names in UTF-8") from error
    if path.suffix != ".json":
        return text.splitlines()
    try:
        names = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: got {error}, expected JSON") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        got = "list of other things" if isinstance(names, list) else type(names).__name__
        raise CheckpointError(
            f"{path}: got a {got}, expected a JSON list of names, the name of label 0 first"
        )
    return names


def _some(items: list) -> str:
    """The first few of many, in words."""
    more = f" and {len(items) - 5} more" if len(items) > 5 else ""
    return ", ".join(repr(item) for item in items[:5]) + more
