"""JSON annotation files, read so that whatever is wrong is named: file, line or row, and field."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxless.errors import BoxlessError
from sharding.format.compression import compression_of
from stages.json_text import RepeatedKeyError, parse_json
from stages.packed_files import read_or_unpack
from stages.picture import file_fault
from stages.student.text.tokenizer import is_blank
from stages.transfer.example import Example

NUM_NAMED = 5
_WHOLE_NUMBER = re.compile("-?[0-9]{1,18}")
_MAYBE_NO_TEXT = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")
_NO_TEXT = re.compile("[\ud800-\udfff\0]")


class ReaderError(BoxlessError):
    """An annotation file that cannot be used; the text says where, what was got and expected."""


@dataclass(frozen=True)
class Record:
    """One entry of an annotation file. `where` is "FILE:LINE" or "FILE, FIELD[ROW]"."""

    where: str
    values: dict[str, Any]

    def text(self, *names: str) -> str:
        """The field under the first of `names` that is there (spellings of one field); one that is
        not blank."""
        value = self.any_text(*names)
        if is_blank(value):
            raise self.error(" or ".join(names), value, "a text that is not blank")
        return value

    def any_text(self, *names: str) -> str:
        """As `text`, also a blank or empty one."""
        return self._typed(names, str, "a text")

    def identifier(self, *names: str) -> str:
        """As `text`; a number is taken too, since files differ."""
        value = self._get(names)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and is_blank(value):
            raise self.error(" or ".join(names), value, "a text or a number")
        return self._typed(names, str, "a text or a number")

    def integer(self, *names: str) -> int:
        """A whole number; one written as a text ("3") is taken as what it says."""
        value = self._get(names)
        if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value.strip()):
            return int(value)
        if isinstance(value, bool):
            raise self.error(names[0], value, "a whole number")
        return self._typed(names, int, "a whole number")

    def list(self, *names: str) -> list[Any]:
        """A list."""
        return self._typed(names, list, "a list")

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """One of some texts; case does not count, and booleans and numbers are read as texts."""
        value = str(self._get((name,))).strip().lower()
        for choice in choices:
            if value == choice.lower():
                return choice
        raise self.error(name, self.values.get(name), f"one of {', '.join(choices)}")

    def error(self, name: str, got: object, expected: str) -> ReaderError:
        """What to raise about a field."""
        return ReaderError(f"{self.where}: {name}: got {_short(got)}, expected {expected}")

    def part(self, name: str, row: int, value: Any) -> Record:
        """An entry of the list `name` as a record of its own."""
        if not isinstance(value, dict):
            raise self.error(f"{name}[{row}]", value, "an object")
        return Record(f"{self.where}, {name}[{row}]", value)

    def _get(self, names: Sequence[str]) -> Any:
        found = [self.values[name] for name in names if name in self.values]
        if not found:
            raise ReaderError(
                f"{self.where}: {' or '.join(names)}: missing; the fields are "
                f"{', '.join(map(str, self.values)) or 'none'}"
            )
        if len(set(map(str, found))) > 1:
            raise self.error(" and ".join(names), found, "the same value in both")
        return found[0]

    def _typed(self, names: Sequence[str], kind: type, expected: str) -> Any:
        value = self._get(names)
        if not isinstance(value, kind):
            raise self.error(" or ".join(names), value, expected)
        return value


def read_json_lines(path: Path) -> Iterator[Record]:
    """Every object of a file with one a line; blank lines are passed over. ReaderError names the
    line that is damaged or cut short."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            values = parse_json(line)
        except RepeatedKeyError as error:
            raise _repeated(where, error) from None
        except (ValueError, RecursionError) as error:
            raise ReaderError(
                f"{where}: not valid JSON ({error}); expected one object a line, got {_short(line)}"
            ) from None
        if not isinstance(values, dict):
            raise ReaderError(f"{where}: got {_short(values)}, expected an object")
        _check_texts(line, Record(where, values))
        yield Record(where, values)


def read_json(path: Path) -> Record:
    """A file that holds one object."""
    text = read_text(path)
    try:
        values = parse_json(text)
    except RepeatedKeyError as error:
        raise _repeated(f"{path}:{error.line}", error) from None
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise ReaderError(f"{path}:{line}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise ReaderError(f"{path}: got {_short(values)}, expected an object")
    _check_texts(text, Record(str(path), values))
    return Record(str(path), values)


def _repeated(where: str, error: RepeatedKeyError) -> ReaderError:
    return ReaderError(
        f"{where}: {error.key}: comes twice in an object, with different values; expected it once"
    )


def parts(record: Record, name: str) -> Iterator[Record]:
    """The entries of the list `name`, each a record."""
    for row, value in enumerate(record.list(name)):
        yield record.part(name, row, value)


class ExampleCollector:
    """Gathers a file's examples; counts, with their reason and place, those that are left out.

    max_missing: examples that may lack a picture, the file of which is not there or is none.
    """

    def __init__(self, *, max_missing: int) -> None:
        self.examples: list[Example] = []
        self.dropped: dict[str, int] = {}
        self._max_missing = max_missing
        self._missing: list[str] = []
        self._unlabelled: list[str] = []
        self._seen: dict[str, str] = {}
        self._faults: dict[Path, str | None] = {}

    def add(self, example: Example, where: str) -> bool:
        """Take an example; False where it lacks a picture. ReaderError where its id was there
        before, or differs from another at most in blanks around it."""
        if example.id != example.id.strip():
            raise ReaderError(f"{where}: got the id {example.id!r}, expected one without blanks")
        if example.id in self._seen:
            raise ReaderError(
                f"{where}: the id {example.id!r} is that of {self._seen[example.id]}, expected "
                "another"
            )
        self._seen[example.id] = where
        for image in example.images:
            if image not in self._faults:
                self._faults[image] = file_fault(image)
            if fault := self._faults[image]:
                self._missing.append(f"{where}: {image} is {fault}")
                self.drop("picture missing")
                return False
        if example.label is None:
            self._unlabelled.append(where)
        self.examples.append(example)
        return True

    def drop(self, reason: str) -> None:
        """Count an example that the task leaves out by its own rule."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def done(self, source: Path | None = None) -> TaskData:
        """All examples of the file `source`. ReaderError where more pictures are missing than
        allowed, where some have a label and some have none, and for no example."""
        if len(self._missing) > self._max_missing:
            raise ReaderError(
                f"{len(self._missing)} examples have no picture, expected at most "
                f"{self._max_missing} (finetune.data.max_missing): "
                + "; ".join(self._missing[:NUM_NAMED])
            )
        if not self.examples:
            raise ReaderError(
                f"{source or 'the file'}: got no example (left out: {self.dropped or 'none'}), "
                "expected at least one"
            )
        if 0 < len(self._unlabelled) < len(self.examples):
            raise ReaderError(
                f"{self._unlabelled[0]}: got no label here and in {len(self._unlabelled) - 1} more of "
                f"{len(self.examples)} examples, expected one in each, or in none (a test file)"
            )
        return TaskData(examples=tuple(self.examples), dropped=self.dropped)


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """Examples in the order of the file, and how many were left out for which reason."""

    examples: tuple[Example, ...]
    dropped: dict[str, int]


def read_text(path: Path) -> str:
    """The text of an annotation file. ReaderError where it cannot be read, is compressed, or is not
    UTF-8."""
    try:
        data = read_or_unpack(path, Path.read_bytes)
    except (OSError, ValueError) as error:
        fault = getattr(error, "strerror", None) or error
        raise ReaderError(f"{path}: {fault}; expected an annotation file") from None
    if kind := compression_of(data):
        raise ReaderError(
            f"{path}: got a file compressed by {kind.name}, expected its text; unpack it by "
            f"{kind.unpack_command} first"
        )
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ReaderError(f"{path}: not UTF-8 ({error})") from None


def _check_texts(source: str, record: Record) -> None:
    r"""ReaderError for a text with a NUL, or with half of a character, which JSON's escapes can
    write ("\ud83d") and which no file name or tokenizer takes."""
    if not _MAYBE_NO_TEXT.search(source):
        return
    rest: list[tuple[str, Any]] = list(record.values.items())
    while rest:
        name, value = rest.pop()
        if isinstance(value, str) and _NO_TEXT.search(value):
            raise record.error(name, value, "a text without NULs and halves of characters")
        if isinstance(value, dict):
            rest += [(f"{name}.{key}", part) for key, part in value.items()]
        if isinstance(value, list):
            rest += [(f"{name}[{row}]", part) for row, part in enumerate(value)]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
