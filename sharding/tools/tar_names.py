"""Tells files that look like tars by their names from those that are read: `*.tar`."""

from __future__ import annotations

import re
from pathlib import Path

from sharding.format.compression import compression_of

_LIKE_A_TAR = re.compile(r".+\.(?:tar|tgz|tbz2?|txz|tzst|tar\.[a-z0-9]{1,4})", re.IGNORECASE)


def other_tars(folder: Path) -> list[str]:
    """What stands in `folder` like a tar but is passed over, as its name is not `*.tar`: each as
    "NAME: what to do", sorted."""
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
