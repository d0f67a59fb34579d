"""Finds and reads files of a corpus, with errors that say what was expected."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from sharding.format.likely_cause import likely_cause
from sharding.user_paths import expand_user
from stages.ingest.sources.source import Failure, Picture, SourceError, safe_key, shown
from stages.json_text import RepeatedKeyError, parse_json
from stages.picture import PictureError, read_picture_file

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
NUM_NAMES_SHOWN = 5


def open_folder(path: str, *, field: str, expected: str) -> Path:
    """The folder at `path`; SourceError, naming the recipe's `field`, where there is none."""
    folder = expand_user(path)
    if folder.is_dir():
        return folder
    got = "a file" if folder.exists() else "not there"
    raise SourceError(f"{field} is {path!r}, which is {got}; expected {expected}{_nearest(folder)}")


def describe_folder(folder: Path) -> str:
    """The first few names in a folder, for messages."""
    names = sorted(shown(entry.name) for entry in folder.iterdir())
    if not names:
        return "it is empty"
    more = f" and {len(names) - NUM_NAMES_SHOWN} more" if len(names) > NUM_NAMES_SHOWN else ""
    return f"it holds {', '.join(names[:NUM_NAMES_SHOWN])}{more}"


def read_json_object(
    path: str,
    *,
    field: str,
    expected: str,
    keys: tuple[str, ...],
    object_hook: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """The JSON object in a file, with a list under each of `keys`; SourceError for all else, also
    where a key comes twice in an object with different values, of which JSON readers take the
    last."""
    file = expand_user(path)
    if not file.is_file():
        got = "a folder" if file.is_dir() else "not there"
        raise SourceError(
            f"{field} is {path!r}, which is {got}; expected {expected}{_nearest(file)}"
        )
    data = file.read_bytes()
    try:
        content = parse_json(data, object_hook=object_hook)
    except RepeatedKeyError as error:
        raise SourceError(f"{field} ({path}), {error}; expected each key once") from None
    except (ValueError, RecursionError) as error:  # JSON and Unicode errors are ValueErrors
        raise SourceError(
            f"{field} ({path}) is not JSON ({error}{likely_cause(data)}); expected {expected}"
        ) from None
    if not isinstance(content, dict):
        hint = "; a file of results names no pictures" if isinstance(content, list) else ""
        raise SourceError(
            f"{field} ({path}) holds a JSON {type(content).__name__}; expected an object, "
            f"{expected}{hint}"
        )
    for key in keys:
        if not isinstance(content.get(key), list):
            got = f"keys {', '.join(sorted(content)) or '(none)'}"
            if key in content:
                got = f"{key!r} is a {type(content[key]).__name__}"
            raise SourceError(f"{field} ({path}): got {got}; expected a list {key!r}: {expected}")
    return content


def list_pictures(root: Path) -> list[str]:
    """Names of the picture files below `root`, relative, with "/", sorted. Hidden ones are left
    out, and linked folders, which could lead in circles."""
    names = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(PICTURE_SUFFIXES) and not name.startswith("."):
                names.append((Path(folder) / name).relative_to(root).as_posix())
    return sorted(names)


def pictures_by_id(root: Path) -> tuple[dict[str, str], list[Picture | Failure]]:
    """({id: name} of the pictures ID.SUFFIX below `root`, a failure for each second one)."""
    names: dict[str, str] = {}
    seconds: list[Picture | Failure] = []
    for name in list_pictures(root):
        picture_id = PurePosixPath(name).stem
        if (first := names.setdefault(picture_id, name)) != name:
            reason = f"second picture of an id: {name} after {first}"
            seconds.append(Failure(key=safe_key(picture_id), reason=shown(reason)))
    return names, seconds


def size_bytes(root: Path, name: str) -> int:
    """Size of the file `name` below `root`, or -1 where there is no such file."""
    try:
        return os.stat(_inside(root, name)).st_size
    except (OSError, ValueError):  # PictureError is one
        return -1


def read_picture(root: Path, name: str) -> bytes:
    """Bytes of the file `name` below `root`; PictureError where they cannot be read."""
    path = _inside(root, name)
    try:
        return read_picture_file(path)
    except FileNotFoundError:
        raise PictureError(f"missing picture: {shown(name)} is not in ingest.root") from None
    except PictureError as error:
        raise PictureError(f"unreadable picture: {shown(name)}: {error}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        cause = getattr(error, "strerror", None) or str(error)
        raise PictureError(f"unreadable picture: {shown(name)}: {cause}") from None


def _inside(root: Path, name: str) -> Path:
    """Annotations come from elsewhere: a name must not lead out of the folder that was given."""
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        raise PictureError(f"outside of ingest.root: {shown(name)}")
    return root / parts


def _nearest(path: Path) -> str:
    """The nearest folder that exists above a path that does not, as part of a message."""
    for parent in path.absolute().parents:
        if parent.is_dir():
            return f" (looked in {parent}: {describe_folder(parent)})"
    return ""
