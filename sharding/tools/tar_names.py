"""Tells files that look like tars by their names from those that are read: `*.tar`."""

from __future__ import annotations

import re
from pathlib import Path

from sharding.format.compression import compression_of

# Not tar.json, tar.idx or tar.md5, which lie beside tars.
_LIKE_A_TAR = re.compile(
    r".+\.(?:tar|tgz|tbz2?|txz|tzst|tar\.(?:gz|bz2|xz|zst|lz4|lzma|z))", re.IGNORECASE
)


def other_tars(folder: Path) -> list[str]:
    """Files of `folder` that look like tars but are not read, as they are not named `*.tar`: each
    as "NAME: what to do", sorted."""
    names = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix != ".tar" and _LIKE_A_TAR.fullmatch(path.name) and path.is_file()
    )
    return [f"{name!r}: {_advice(folder / name)}" for name in names]


def _advice(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            kind = compression_of(file.read(512))
    except OSError as error:
        return str(error.strerror)
    if kind is None:
        return "rename it to NAME.tar"
    return f"it is compressed by {kind.name}; unpack it to NAME.tar by {kind.unpack_command}"
