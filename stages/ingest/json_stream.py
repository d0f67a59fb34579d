"""Parses a JSON list too large for memory, entry by entry."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.ingest.sources.source import SourceError

PIECE_BYTES = 1 << 22
MAX_ENTRY_CHARACTERS = 1 << 26


def iterate_json_list(path: Path, *, field: str, expected: str) -> Iterator[Any]:
    """Every entry of the list in a file; SourceError, naming the recipe's `field`, for other files
    and, after the entries before it, where the list is cut short or damaged."""
    decoder = json.JSONDecoder()
    try:
        with open(path, "rb") as source:
            pieces = codecs.iterdecode(
                iter(lambda: source.read(PIECE_BYTES), b""), "utf-8-sig", "strict"
            )
            text = next(pieces, "").lstrip()
            if not text.startswith("["):
                raise SourceError(f"{field} ({path}) is not a JSON list; expected {expected}")
            text = text[1:]
            number = 0
            while True:
                text = text.lstrip(" \t\r\n,")
                if text.startswith("]"):
                    return
                try:
                    entry, end = decoder.raw_decode(text)
                    # A number or a name that the piece ends in may continue in the next.
                    is_whole = end < len(text)
                except (ValueError, RecursionError):
                    is_whole = False
                if is_whole:
                    yield entry
                    text, number = text[end:], number + 1
                    continue
                piece = next(pieces, "")
                if not piece or len(text) > MAX_ENTRY_CHARACTERS:
                    raise SourceError(
                        f"{field} ({path}): cut short or damaged after {number} entries; expected "
                        f"{expected}"
                    )
                text += piece
    except OSError as error:
        raise SourceError(f"{field} ({path}): {error.strerror}; expected {expected}") from None
    except UnicodeDecodeError as error:
        raise SourceError(f"{field} ({path}) is not UTF-8 ({error}); expected {expected}") from None
