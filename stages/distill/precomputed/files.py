"""Files that a recipe names by path or pattern, read by offset.

Reached from the formats with rows in files: `tsv` and `coco_json`.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from stages.distill.precomputed.formats.record import FeaturesError, RowError
from stages.distill.precomputed.index import Place


def find_files(pattern: str, *, field: str) -> list[Path]:
    """The files of a path or pattern, by name; FeaturesError, naming `field`, where none is."""
    names = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
    paths = [Path(name) for name in names if os.path.isfile(name)]
    if not paths:
        kind = "a folder" if os.path.isdir(pattern) else "no file"
        raise FeaturesError(
            f"{field} is {pattern!r}, {kind}; expected a file, or a pattern that files match"
        )
    return paths


class OpenFiles:
    """Files open for reading by offset, for as long as they are needed.

    pread has no file position to share, so threads may use one together.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._descriptors = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths]

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", ()):
            os.close(descriptor)

    def read(self, place: Place) -> bytes:
        """The bytes of a place; RowError, naming the file, where it has not all of them."""
        try:
            data = os.pread(self._descriptors[place.file], place.length, place.offset)
        except OSError as error:
            raise RowError(f"{self._where(place)}: {error.strerror}") from None
        if len(data) < place.length:
            raise RowError(f"{self._where(place)}: cut short since it was indexed")
        return data

    def _where(self, place: Place) -> str:
        return f"{self._paths[place.file].name} byte {place.offset}"
