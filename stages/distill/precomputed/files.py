"""Files named by path or pattern, read by offset."""

from __future__ import annotations

import glob
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from stages.distill.precomputed.formats.record import FeaturesError, RowError
from stages.distill.precomputed.index import Place

MAX_OPEN = 64
"""Files open at a time: far below the 1,024 that systems allow a process."""


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
    """Files read by offset, of which at most MAX_OPEN are open at a time, the last used ones."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._descriptors: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", {}).values():
            os.close(descriptor)

    def read(self, place: Place) -> bytes:
        """The bytes of a place; RowError, naming the file, where it has not all of them."""
        try:
            with self._lock:
                data = os.pread(self._descriptor(place.file), place.length, place.offset)
        except OSError as error:
            raise RowError(f"{self._where(place)}: {error.strerror}") from None
        if len(data) < place.length:
            raise RowError(f"{self._where(place)}: cut short since it was indexed")
        return data

    def _descriptor(self, number: int) -> int:
        """A file's descriptor; opening it may close the one that was not used for longest."""
        if number not in self._descriptors:
            if len(self._descriptors) >= MAX_OPEN:
                os.close(self._descriptors.popitem(last=False)[1])
            self._descriptors[number] = os.open(self._paths[number], os.O_RDONLY | os.O_CLOEXEC)
        self._descriptors.move_to_end(number)
        return self._descriptors[number]

    def _where(self, place: Place) -> str:
        return f"{self._paths[place.file].name} byte {place.offset}"
