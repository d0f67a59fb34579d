"""Pictures, and files beside them, in tars: by the path that they would have if the tar were a
folder.

`train2014.tar/COCO_train2014_000000000009.jpg` is a member of a plain tar, of any depth. Of a
folder of shards (one with a catalog.json) `images/KEY.jpg` is the picture of a sample, whatever its
own ending. Places are indexed once; a picture is then one read of its shard.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sharding.format.catalog import NAME as CATALOG
from sharding.format.catalog import read_catalog
from sharding.format.manifest import PICTURE_EXTENSIONS, read_manifest
from sharding.format.schema import ShardError
from sharding.format.tar_scan import scan

TAR = ".tar"
NUM_INDEXED = 8
"""Tars, and folders of shards, whose indices are kept."""


@dataclass(frozen=True)
class PackedFile:
    """Where the bytes of a file are: `num_bytes` from byte `offset` of a tar."""

    tar: Path
    offset: int
    num_bytes: int

    def read(self, most: int | None = None) -> bytes:
        """Its bytes, or the first ones of them. Raises OSError."""
        with open(self.tar, "rb") as file:
            file.seek(self.offset)
            return file.read(self.num_bytes if most is None else min(most, self.num_bytes))


def find_packed(path: Path) -> PackedFile | None:
    """The file that a path leads to inside a tar, or the picture inside a folder of shards; None
    where it leads into neither, or where that has none. Raises ShardError for a damaged tar or
    catalog."""
    for parent in path.parents:
        if parent.suffix == TAR and parent.is_file():
            place = _members(parent, _version(parent)).get(path.relative_to(parent).as_posix())
            return PackedFile(parent, *place) if place else None
        if path.suffix[1:].lower() in PICTURE_EXTENSIONS and (parent / CATALOG).is_file():
            return _samples(parent, _version(parent / CATALOG)).get(path.stem)
    return None


def read_or_unpack(path: Path, read: Callable[[Path], bytes], *, most: int | None = None) -> bytes:
    """What `read` gives of a path; where nothing is there, the bytes of the packed file, at most
    `most`. Raises what `read` does, and ShardError as `find_packed`."""
    try:
        return read(path)
    except (FileNotFoundError, NotADirectoryError):
        packed = find_packed(path)
        if packed is None:
            raise
    return packed.read(most)


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=NUM_INDEXED)
def _members(tar: Path, version: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """The places of a tar's files, by name."""
    with open(tar, "rb") as file:

        def read(offset: int, length: int) -> bytes:
            return os.pread(file.fileno(), length, offset)

        try:
            return {
                member.name.removeprefix("./"): (member.offset, member.num_bytes)
                for member in scan(read, version[1])
            }
        except ShardError as error:
            raise ShardError(f"{tar}: {error}") from None


@functools.lru_cache(maxsize=NUM_INDEXED)
def _samples(folder: Path, version: tuple[int, int]) -> dict[str, PackedFile]:
    """The pictures of a folder of shards, by key."""
    found = {}
    for shard in read_catalog(folder).shards:
        tar = folder / shard.tar
        for sample in read_manifest(tar).samples:
            found[sample.key] = PackedFile(tar, *sample.members[sample.extension])
    return found
