"""Parses JSON of other programs strictly: repeated keys and trailing text are errors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from boxless.errors import BoxlessError

_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[][{},:\n]', re.DOTALL)


class RepeatedKeyError(BoxlessError):
    """A key that occurs twice in an object, with different values. `line`, from 1, is that of the
    second one."""

    def __init__(self, key: str, line: int) -> None:
        place = f"line {line}: " if line > 1 else ""
        super().__init__(f"{place}key {key!r} comes twice in an object, with different values")
        self.key, self.line = key, line


def parse_json(
    text: str | bytes,
    *,
    object_hook: Callable[[dict[str, Any]], Any] | None = None,
    parse_constant: Callable[[str], Any] | None = None,
) -> Any:
    """As `json.loads`; RepeatedKeyError (a ValueError) for a key that occurs twice in an object
    with different values, of which `json.loads` takes the last. Raises what that raises, too."""
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    repeated: list[str] = []

    def as_object(pairs: list[tuple[str, Any]]) -> Any:
        entry = dict(pairs)
        if len(entry) < len(pairs):
            # "is" first: NaN is not equal to itself.
            repeated.extend(k for k, v in pairs if entry[k] is not v and entry[k] != v)
        return object_hook(entry) if object_hook else entry

    value = json.loads(text, object_pairs_hook=as_object, parse_constant=parse_constant)
    if repeated:
        raise RepeatedKeyError(repeated[0], _line_of_second(text, repeated[0]))
    return value


def _line_of_second(text: str, key: str) -> int:
    """The line of the first place in JSON where an object has `key` again."""
    line, last = 1, ""
    counts: list[int] = []  # of the key, in each object or list around
    for match in _TOKENS.finditer(text):
        token = match[0]
        if token == "\n":
            line += 1
            continue
        if token in ("{", "["):
            counts.append(0)
        elif token in ("}", "]"):
            counts.pop()
        elif token == ":" and json.loads(last) == key:
            counts[-1] += 1
            if counts[-1] == 2:
                return line
        last = token
    return line
