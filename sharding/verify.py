"""Says what is wrong with shards: fast by manifests and sizes, full by every byte.

Reached by `boxless verify`. Faults are returned, not raised, so that one look names them all.
"""
from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sharding import catalog as catalogs
from sharding.atomic import BUFFER_BYTES
from sharding.catalog import Catalog, ShardEntry, load_manifest, read_catalog
from sharding.manifest import Manifest, SampleEntry, read_manifest
from sharding.read import OpenTar, read_entry
from sharding.schema import OBJECTS, ShardError, check_objects, check_sample


@dataclass(frozen=True)
class Fault:
    """One thing wrong: the path of the tar (or folder), the sample's key if one, and the cause."""

    tar: str
    key: str | None
    cause: str


def verify_shard(tar: Path, *, full: bool) -> list[Fault]:
    """The faults of one shard, none if it is sound.

    Fast: the manifest parses and names this tar, and the tar has its size. Full: besides, the
    tar's SHA-256, every header where the manifest says, nothing but zeros after the last member,
    every sample's CRC-32, json and objects.
    """
    try:
        manifest = read_manifest(tar)
        source = OpenTar(tar)
        source.check_size(manifest)
    except ShardError as error:
        return [Fault(str(tar), None, str(error))]
    if not full:
        return []
    return [Fault(str(tar), key, cause) for key, cause in _full_causes(source, manifest)]


def _full_causes(source: OpenTar, manifest: Manifest) -> Iterator[tuple[str | None, str]]:
    """(key or None, cause) for everything wrong inside a tar of the right size."""
    digest = hashlib.sha256()
    for piece in _pieces(source, 0):
        digest.update(piece)
    if (got := digest.hexdigest()) != manifest.sha256:
        yield None, f"got SHA-256 {got}, expected {manifest.sha256}: the bytes have changed"
    end = 0
    for entry in manifest.samples:
        for extension, (offset, length) in entry.members.items():
            if cause := _header_cause(source, f"{entry.key}.{extension}", end, offset, length):
                yield entry.key, cause
            end = offset + length + -length % tarfile.BLOCKSIZE
        if cause := _sample_cause(source, entry):
            yield entry.key, cause
    if any(piece.count(0) != len(piece) for piece in _pieces(source, end)):
        yield None, f"got data after byte {end}, expected the end of the tar"


def _pieces(source: OpenTar, start: int) -> Iterator[bytes]:
    """The bytes of a tar from `start` to its end."""
    for offset in range(start, source.num_bytes, BUFFER_BYTES):
        yield source.read(offset, min(BUFFER_BYTES, source.num_bytes - offset))


def _header_cause(source: OpenTar, name: str, end: int, offset: int, length: int) -> str | None:
    """What is wrong with a member's header, which must lie between `end` and `offset`."""
    if end + tarfile.BLOCKSIZE != offset:
        return f"{name}: got bytes {end} to {offset} before it, expected one header block"
    try:
        block = source.read(end, tarfile.BLOCKSIZE)
        header = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (ShardError, tarfile.TarError, ValueError) as error:
        return f"{name}: got a damaged header ({error}), expected one of the member"
    if not header.isreg() or (header.name, header.size) != (name, length):
        return (
            f"got a header of {header.name!r} with {header.size} bytes, "
            f"expected the file {name!r} with {length}"
        )
    return None


def _sample_cause(source: OpenTar, entry: SampleEntry) -> str | None:
    """What is wrong with a sample's payloads."""
    try:
        sample = read_entry(source, entry)
        check_sample(sample)
        if sample.objects is not None:
            check_objects(sample.objects)
    except ShardError as error:
        return str(error)
    if (size := (sample.info["width"], sample.info["height"])) != (entry.width, entry.height):
        return f"got {size} px in the json, expected {(entry.width, entry.height)} of the manifest"
    return None


def verify_paths(paths: Iterable[Path], *, full: bool) -> list[Fault]:
    """The faults of tars, of folders of shards, and of run folders that hold such folders.

    A folder of shards is held against its catalog.json as well.
    """
    faults = []
    for path in paths:
        if not path.is_dir():
            faults += verify_shard(path, full=full)
        elif _is_shard_folder(path):
            faults += _verify_folder(path, full=full)
        elif folders := [folder for folder in sorted(path.iterdir()) if _is_shard_folder(folder)]:
            for folder in folders:
                faults += _verify_folder(folder, full=full)
        else:
            cause = "got no shards, expected a tar, a folder of tars, or a run folder"
            faults.append(Fault(str(path), None, cause))
    return faults


def _is_shard_folder(path: Path) -> bool:
    if not path.is_dir():
        return False
    return (path / catalogs.NAME).exists() or any(path.glob("*.tar"))


def _verify_folder(folder: Path, *, full: bool) -> list[Fault]:
    # A manifest without its tar counts as well: the tar has been deleted.
    present = {tar.name for tar in folder.glob("*.tar")}
    present |= {path.name.removesuffix(".json") for path in folder.glob("*.tar.json")}
    try:
        catalog = read_catalog(folder)
    except ShardError as error:
        faults = [Fault(str(folder), None, str(error))]
        for name in sorted(present):
            faults += verify_shard(folder / name, full=full)
        return faults
    faults = []
    for shard in catalog.shards:
        found = verify_shard(folder / shard.tar, full=full)
        faults += found or _catalog_faults(folder / shard.tar, shard, catalog)
    for name in sorted(present - {shard.tar for shard in catalog.shards}):
        cause = f"got a shard that {catalogs.NAME} does not list, expected it there or removed"
        faults.append(Fault(str(folder / name), None, cause))
    return faults


def _catalog_faults(tar: Path, shard: ShardEntry, catalog: Catalog) -> list[Fault]:
    """Where a shard that is sound by itself disagrees with its folder's catalog."""
    try:
        manifest = load_manifest(tar, shard)
    except ShardError as error:
        return [Fault(str(tar), None, str(error))]
    got = (manifest.tar_bytes, manifest.num_input, manifest.num_ok, manifest.num_failed)
    expected = (shard.bytes, shard.num_input, shard.num_ok, shard.num_failed)
    if got != expected:
        cause = f"got bytes, input, ok, failed {got}, expected {expected} of {catalogs.NAME}"
        return [Fault(str(tar), None, cause)]
    wanted = catalog.kind == "objects"
    return [
        Fault(str(tar), entry.key, f"got {tuple(entry.members)} in a folder of {catalog.kind}")
        for entry in manifest.samples if (OBJECTS in entry.members) != wanted
    ]
