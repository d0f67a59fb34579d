"""Converts plain values (dict, list, number, text) to checked dataclasses, and back.

One pydantic ``TypeAdapter`` reads the whole tree, strictly: ``"3"`` is not ``3``, ``true`` is not
``1``; only a whole number is taken where a number is expected. Its faults become one
``RecipeError`` with a line for each: the dotted path, what was got and what was expected.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from pydantic_core import ErrorDetails

from boxless.errors import BoxlessError


class RecipeError(BoxlessError):
    """A recipe, or a ``--set`` on the command line, that cannot be meant."""


def build(hint: Any, value: Any, path: str = "") -> Any:
    """The value of type ``hint`` that the plain ``value`` describes.

    ``hint``: a dataclass, or an annotated union of dataclasses selected by ``kind``. ``path``
    is where the value is in the recipe, for messages. Raises RecipeError.
    """
    text = json.dumps(value, default=repr)
    _refuse_long_integers(value, path)
    try:
        return adapter(hint).validate_json(text, strict=True)
    except ValidationError as error:
        value = json.loads(text)  # with the keys as pydantic has seen them
        faults = error.errors(include_url=False, include_input=False)
        lines = dict.fromkeys(_message(fault, hint, value, path) for fault in faults)
        raise RecipeError("\n".join(lines)) from error


def _refuse_long_integers(value: Any, path: str) -> None:
    """Python's integers have no end; those of arrays, files and C have 64 bits."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_long_integers(inner, _join(path, str(key)))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            _refuse_long_integers(inner, f"{path}[{index}]")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        where = path or "the recipe"
        raise RecipeError(f"{where} is {_show(value)}; expected a whole number of 64 bits at most.")


@functools.cache
def adapter(hint: Any) -> TypeAdapter[Any]:
    """What reads values of the type: keys that a dataclass does not have are errors, and so are
    numbers that are not finite, which pass through bounds or train nothing."""
    for cls in set(dataclasses_in(hint)):
        with_config(ConfigDict(extra="forbid", allow_inf_nan=False))(cls)
    return TypeAdapter(hint)


def dataclasses_in(hint: Any) -> Iterator[type]:
    """Every dataclass that a value of the type may hold, at any depth."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
        for inner in typing.get_type_hints(hint).values():
            yield from dataclasses_in(inner)
    for inner in typing.get_args(hint):
        yield from dataclasses_in(inner)


def plain(value: Any) -> Any:
    """The other way: dataclasses to mappings, tuples to lists, paths to text, for YAML."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def fill_defaults(recorded: dict[str, Any], section: Any) -> dict[str, Any]:
    """``recorded``, plain values of a dataclass as an earlier version had it, with the default of
    each field that it lacks; ``section`` is that dataclass as it is now."""
    filled = dict(recorded)
    for field in dataclasses.fields(section):
        value, before = getattr(section, field.name), recorded.get(field.name)
        if field.name not in recorded:
            if field.default_factory is not dataclasses.MISSING:
                filled[field.name] = plain(field.default_factory())
            elif field.default is not dataclasses.MISSING:
                filled[field.name] = plain(field.default)
        elif dataclasses.is_dataclass(value) and isinstance(before, dict):
            if before.get("kind") == getattr(value, "kind", None):
                filled[field.name] = fill_defaults(before, value)
    return filled


def nearest(word: str, words: Iterable[str]) -> str:
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a fault is: its dotted path, the type and the value there, the dataclass around it."""

    path: str
    hint: Any
    value: Any
    around: type | None


_MISSING = object()


def _message(fault: ErrorDetails, hint: Any, value: Any, path: str) -> str:
    """A fault in the words of someone who writes a recipe."""
    place = _place_of(fault["loc"], _Place(path=path, hint=hint, value=value, around=None))
    if fault["type"] in ("value_error", "assertion_error"):  # a check in __post_init__
        names = [field.name for cls in _classes(place.hint) for field in dataclasses.fields(cls)]
        return _under(place.path, str(fault["ctx"]["error"]), names)
    if place.hint is None and place.around is not None:
        names = [field.name for field in dataclasses.fields(place.around)]
        return (
            f"{place.path} is not a key of a recipe; expected one of {', '.join(names)}."
            f"{nearest(str(fault['loc'][-1]), names)}"
        )
    if place.value is _MISSING:
        return f"{place.path} is missing; expected {describe(place.hint)}."
    where = place.path or "the recipe"
    kinds = _kinds(place.hint)
    if kinds and isinstance(place.value, dict):  # of a kind that there is not
        where, place = _join(where, "kind"), dataclasses.replace(place, value=place.value["kind"])
        return (
            f"{where} is {_show(place.value)}; expected {describe(typing.Literal[tuple(kinds)])}."
        )
    return f"{where} is {_show(place.value)}; expected {describe(place.hint)}."


def _place_of(location: Iterable[int | str], place: _Place) -> _Place:
    """Follows pydantic's location as far as there are dataclasses: a list of numbers is one
    value."""
    for part in location:
        hint = typing.get_args(place.hint)[0] if _is_annotated(place.hint) else place.hint
        place = dataclasses.replace(place, hint=hint)
        if not _holds_dataclass(hint):
            break
        classes = _classes(hint)
        if len(classes) > 1:  # pydantic names the kind before it continues
            place = dataclasses.replace(place, hint=_kinds(hint)[part])
        elif classes:
            hints = typing.get_type_hints(classes[0])
            value = place.value.get(part, _MISSING) if isinstance(place.value, dict) else _MISSING
            place = _Place(
                path=_join(place.path, part),
                hint=hints.get(str(part)),
                value=value,
                around=classes[0],
            )
        else:
            is_item = isinstance(part, int)
            place = dataclasses.replace(
                place,
                path=f"{place.path}[{part}]" if is_item else _join(place.path, part),
                hint=typing.get_args(hint)[0 if is_item else 1],
                value=place.value[part],
            )
    return place


def _is_annotated(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Annotated


def _classes(hint: Any) -> list[Any]:
    """The dataclasses that a value of the type may be itself."""
    if dataclasses.is_dataclass(hint):
        return [hint]
    if typing.get_origin(hint) in (typing.Union, types.UnionType, typing.Annotated):
        return [cls for part in typing.get_args(hint) for cls in _classes(part)]
    return []


def _kinds(hint: Any) -> dict[Any, Any]:
    """{kind: dataclass} of a union selected by ``kind``; empty for other types."""
    classes = _classes(hint)
    if len(classes) < 2:
        return {}
    return {typing.get_args(typing.get_type_hints(cls)["kind"])[0]: cls for cls in classes}


def _under(path: str, message: str, fields: typing.Container[str]) -> str:
    """``message`` with the dotted path before the field that it begins with; part of the path may
    be there already."""
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
