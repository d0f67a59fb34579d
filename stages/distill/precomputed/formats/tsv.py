"""Rows of tab-separated files by offset: indexed in one pass, then read one at a time.

A row is a line, its first field the id. The csv module is not used: it keeps no offsets, and its
fields may hold line ends, which base64 and JSON do not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from stages.distill.precomputed.config import FeaturesConfig
from stages.distill.precomputed.files import OpenFiles, find_files
from stages.distill.precomputed.formats.record import RowError
from stages.distill.precomputed.ids import rule_of
from stages.distill.precomputed.index import Place, ScannedRow, index_files

MAX_ROW_BYTES = 1 << 28
_MAX_ID_BYTES = 1 << 10
_NUM_FIRST = 8


class TsvFiles:
    """The rows of the files that `pattern` names, with their index."""

    def __init__(
        self, pattern: str, config: FeaturesConfig, *, field: str, folder: Path | None, show: bool
    ) -> None:
        self.paths = find_files(pattern, field=field)
        self.index = index_files(
            self.paths,
            scan_lines,
            name=f"tsv {config.id} {config.pattern}",
            rule=rule_of(config),
            folder=folder,
            show=show,
        )
        self._files = OpenFiles(self.paths)

    def id_at(self, place: Place) -> str:
        """The first field of a row."""
        head = self._files.read(place._replace(length=min(place.length, _MAX_ID_BYTES)))
        return _id(head.partition(b"\t")[0])

    def row(self, place: Place) -> tuple[str, list[bytes]]:
        """(id, the other fields) of a row; RowError where the file no longer has it."""
        first, *rest = self._files.read(place).rstrip(b"\r\n").split(b"\t")
        return _id(first), rest

    def first_rows(self) -> list[list[bytes]]:
        """The other fields of the first file's first rows, to detect its layout: several, as one
        may be broken."""
        with open(self.paths[0], "rb") as source:
            rows = itertools.islice((row for row in scan_lines(source) if row.id), _NUM_FIRST)
            return [self.row(Place(0, row.offset, row.length))[1] for row in rows]


def scan_lines(source: BinaryIO) -> Iterator[ScannedRow]:
    """Every line but empty ones. A line that is longer than any row is passed over in pieces."""
    offset = 0
    while line := source.readline(MAX_ROW_BYTES):
        start, offset = offset, offset + len(line)
        if not line.endswith(b"\n") and len(line) == MAX_ROW_BYTES:
            while piece := source.readline(MAX_ROW_BYTES):
                offset += len(piece)
                if piece.endswith(b"\n"):
                    break
            yield ScannedRow(
                None, start, offset - start, f"a row of more than {MAX_ROW_BYTES} bytes"
            )
        elif line.strip():
            tab = line.find(b"\t", 0, _MAX_ID_BYTES)
            if tab < 0:
                yield ScannedRow(None, start, len(line), f"no id and tab in {line[:40]!r}")
            else:
                yield ScannedRow(_id(line[:tab]), start, len(line))


def _id(field: bytes) -> str:
    """A first field as text; in the quotes of csv where it has some."""
    text = field.decode("utf-8", "backslashreplace").strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].replace('""', '"')
    return text


def whole_number(field: bytes, name: str) -> int:
    """A field that is a whole number, as it is written or as a float without a fraction."""
    try:
        number = float(field)
        if number == int(number) and 0 <= number < 1 << 31:
            return int(number)
    except (ValueError, OverflowError):
        pass
    raise RowError(f"{name}: {field[:40]!r}, expected a whole number")
