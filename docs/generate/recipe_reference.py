"""The page "Recipe fields": every key of a recipe with type, default and meaning, from the
dataclasses."""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.recipe.field_docs import class_summary, field_docs
from pipeline.recipe.recipe import Recipe

_INTRO = """# Recipe fields

Every key of a recipe, made from the dataclasses that check it. [Recipes](../recipes.md) lists the
built-in ones. A value is set in a YAML file or with `--set KEY.PATH=VALUE`. Fields marked *ours*
are not in the papers.
"""


def recipe_reference() -> str:
    """The page as Markdown: a section a dataclass, a table row a field."""
    parts = [_INTRO]
    for path, cls in sections():
        parts.append(f"## {path}\n" if path else "## Top level\n")
        parts.append(class_summary(cls) + "\n")
        parts.append(_table(cls, path))
    return "\n".join(parts)


def sections() -> Iterator[tuple[str, type]]:
    """(dotted path, dataclass) of every part of a recipe, the recipe itself first, depth first."""
    yield from _below("", Recipe)


def undocumented_fields() -> list[str]:
    """Dotted paths of fields that have no documentation of their own nor of their type."""
    return [
        f"{path}.{field.name}".lstrip(".")
        for path, cls in sections()
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if not _meaning(cls, field.name)
    ]


def _below(path: str, cls: type) -> Iterator[tuple[str, type]]:
    yield path, cls
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        for inner in _dataclasses_in(typing.get_type_hints(cls)[field.name]):
            kind = typing.get_type_hints(inner).get("kind")
            suffix = f" (kind: {typing.get_args(kind)[0]})" if typing.get_args(kind) else ""
            yield from _below(f"{path}.{field.name}".lstrip(".") + suffix, inner)


def _dataclasses_in(hint: Any) -> list[type]:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    return [inner for part in typing.get_args(hint) for inner in _dataclasses_in(part)]


def _table(cls: type, path: str) -> str:
    rows = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        cells = (
            f"`{field.name}`",
            _type_text(hints[field.name]),
            _default_text(field, path),
            _meaning(cls, field.name),
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _meaning(cls: type, name: str) -> str:
    inner = _dataclasses_in(typing.get_type_hints(cls)[name])
    text = field_docs(cls).get(name, "")
    if len(inner) == 1 or not text:
        text = class_summary(inner[0]) if inner else text
    if not text and name == "kind":
        text = "chooses this section among its alternatives"
    text = text.replace("``", "`").strip()
    text = text[:1].upper() + text[1:]
    return text if not text or text.endswith((".", "?")) else f"{text}."


def _type_text(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_type_text, arguments)))
    if origin in (list, tuple):
        inner = [part for part in arguments if part is not Ellipsis]
        if origin is tuple and Ellipsis not in arguments:
            kinds = list(dict.fromkeys(map(_type_text, inner)))
            return f"list of {len(inner)} ({', '.join(kinds)})"
        return f"list of {_type_text(inner[0])}"
    if origin is dict:
        return f"mapping to {_type_text(arguments[1])}"
    if dataclasses.is_dataclass(hint):
        return "section"
    names = {type(None): "null", Path: "path", str: "text"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _default_text(field: dataclasses.Field[Any], path: str) -> str:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return "required"
    if dataclasses.is_dataclass(value):
        suffix = f" (kind: {value.kind})" if hasattr(value, "kind") else ""
        return f"[section](#{_anchor(f'{path}.{field.name}'.lstrip('.') + suffix)})"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{json.dumps(value, default=str)}`"


def _anchor(heading: str) -> str:
    """The anchor that mkdocs gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
