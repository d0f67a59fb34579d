"""Reads the documentation of settings' fields from the source code.

A field is documented by the string below it, or by a line `name: text` in the docstring of its
class, where several names may share a line and the text may continue in indented lines.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
import textwrap
from collections.abc import Iterator

_FIELD_LINE = re.compile(r"((?:\w+, )*\w+): (.*)")


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """{field: its documentation, on one line} of a dataclass, inherited fields included.

    A field that only repeats one of a base class to change its default has the base's text; one
    without any has the summary of the dataclass that is its type. Fields without documentation are
    missing from the result.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base) and isinstance(base, type):
            found.update(_from_docstring(base))
            found.update(_from_strings_below(base))
    names = {field.name for field in dataclasses.fields(cls)}
    return {name: text for name, text in found.items() if name in names}


def class_summary(cls: type) -> str:
    """The docstring of a dataclass without its lines about fields, as one paragraph."""
    paragraphs = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
    names = {field.name for field in dataclasses.fields(cls)}
    kept = [text for text in paragraphs if not _starts_with_field(text, names)]
    return " ".join(" ".join(kept).split())


def _starts_with_field(text: str, names: set[str]) -> bool:
    match = _FIELD_LINE.match(text)
    return bool(match and set(match[1].split(", ")) & names)


def _from_docstring(cls: type) -> dict[str, str]:
    names = {field.name for field in dataclasses.fields(cls)}
    entries: list[str] = []
    for line in inspect.cleandoc(cls.__dict__.get("__doc__") or "").splitlines():
        if _starts_with_field(line, names):
            entries.append(line)
        elif entries and line.startswith(" "):
            entries[-1] += f" {line.strip()}"
    return {name: text for entry in entries for name, text in _split(entry, names)}


def _split(entry: str, names: set[str]) -> Iterator[tuple[str, str]]:
    """(field, text) of `a: text. b, c: text`, which may document several fields in one line."""
    starts = [
        match
        for match in re.finditer(r"(?:^|(?<=[.;] ))((?:\w+, )*\w+): ", entry)
        if set(match[1].split(", ")) <= names
    ]
    for start, following in zip(starts, [*starts[1:], None]):
        text = entry[start.end() : following.start() if following else None].strip()
        yield from ((name, text) for name in start[1].split(", "))


def _from_strings_below(cls: type) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    found = {}
    for field, below in zip(body, body[1:]):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            found[field.target.id] = " ".join(below.value.value.split())
    return found
