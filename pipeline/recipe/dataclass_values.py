"""From plain values (dict, list, number, text) to checked dataclasses, and back.

Every fault is a ``RecipeError`` that names the dotted path, what was got and what was expected.
Types are held strictly: ``"3"`` is not ``3``, ``true`` is not ``1``; only a whole number is taken
where a number is expected.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from boxless.errors import BoxlessError


class RecipeError(BoxlessError):
    """A recipe, or a ``--set`` on the command line, that cannot be meant."""


def build(hint: Any, value: Any, path: str = "") -> Any:
    """The value of type ``hint`` that the plain ``value`` describes.

    Dataclasses are built from mappings, however deep they stand in lists, mappings and optional
    fields; of several dataclasses in a union, that one whose ``kind`` the mapping names, the first
    where it names none. All else is checked by pydantic in its strict JSON mode. ``path`` is where
    the value stands in the recipe, for messages. Raises RecipeError.
    """
    if dataclasses.is_dataclass(hint):
        return _build_dataclass(typing.cast(type, hint), value, path)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if not _holds_dataclass(hint):
        return _build_leaf(hint, value, path)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        inner = _of_kind([part for part in arguments if _holds_dataclass(part)], value, path)
        return build(inner, value, path)
    if origin is dict and isinstance(value, dict):
        return {key: build(arguments[1], item, _join(path, key)) for key, item in value.items()}
    if origin in (list, tuple) and isinstance(value, list):
        return origin(build(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    raise RecipeError(f"{path} is {_show(value)}; expected {describe(hint)}.")


def plain(value: Any) -> Any:
    """The other way: dataclasses to mappings, tuples to lists, paths to text, for YAML."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def nearest(word: str, words: typing.Iterable[str]) -> str:
    """`` Did you mean WORD?`` for the likeliest of ``words``, or nothing."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def describe(hint: Any) -> str:
    """A type in the words of someone who writes a recipe: ``int | None`` is
    ``a whole number or null``."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    words |= {type(None): "null", Path: "a path"}
    if hint in words:
        return words[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(_show(choice) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(part) for part in arguments)
    if origin is tuple and Ellipsis not in arguments:
        return f"a list of {len(arguments)}: " + ", ".join(describe(part) for part in arguments)
    if origin in (list, tuple):
        return f"a list, each item {describe(arguments[0])}"
    if origin is dict:
        return f"a mapping, each value {describe(arguments[1])}"
    if dataclasses.is_dataclass(hint):
        return "a mapping with the keys " + ", ".join(f.name for f in dataclasses.fields(hint))
    return getattr(hint, "__name__", str(hint))


def _build_dataclass(cls: type, value: Any, path: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if not isinstance(value, dict):
        raise RecipeError(f"{path or 'the recipe'} is {_show(value)}; expected {describe(cls)}.")
    for key in value:
        if key not in fields:
            raise RecipeError(
                f"{_join(path, key)} is not a key of a recipe; expected one of "
                f"{', '.join(fields)}.{nearest(str(key), fields)}"
            )
    hints = typing.get_type_hints(cls)
    for name, field in fields.items():
        optional = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
        if name not in value and not optional:
            raise RecipeError(f"{_join(path, name)} is missing; expected {describe(hints[name])}.")
    built = {key: build(hints[key], item, _join(path, key)) for key, item in value.items()}
    try:
        return cls(**built)
    except RecipeError:
        raise
    except ValueError as error:  # a check in __post_init__; it names its field first
        raise RecipeError(_under(path, str(error), fields)) from error


def _of_kind(classes: list[Any], value: Any, path: str) -> Any:
    """The one of ``classes`` whose Literal field ``kind`` the mapping ``value`` names."""
    if len(classes) == 1 or not isinstance(value, dict) or "kind" not in value:
        return classes[0]
    kinds = {typing.get_args(typing.get_type_hints(cls)["kind"])[0]: cls for cls in classes}
    kind = build(typing.Literal[tuple(kinds)], value["kind"], _join(path, "kind"))
    return kinds[kind]


def _build_leaf(hint: Any, value: Any, path: str) -> Any:
    try:
        return TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    except (ValidationError, TypeError) as error:
        raise RecipeError(f"{path} is {_show(value)}; expected {describe(hint)}.") from error


def _under(path: str, message: str, fields: typing.Container[str]) -> str:
    """``message`` with the dotted path before the field that it begins with; part of the path may
    stand there already."""
    first = message.split(" ", 1)[0].strip(":,'")
    above = first.rpartition(".")[0]
    if above and f".{path}".endswith(f".{above}"):
        return path.removesuffix(above) + message
    if first.partition(".")[0] in fields:
        return _join(path, message)
    return f"{path}: {message}" if path else message


def _holds_dataclass(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) or any(map(_holds_dataclass, typing.get_args(hint)))


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _show(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except TypeError:
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
