"""Verifies shards: fast by manifests and sizes, or in full by every byte.

Faults are returned, not raised, so that one look names them all. The tars may be ours or those of
others with manifests by sharding.tools.index. Every byte is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from sharding.format import catalog as catalogs
from sharding.format.catalog import Catalog, ShardEntry, read_catalog, read_shapes
from sharding.format.key_digests import KeyDigests
from sharding.format.manifest import Manifest, SampleEntry, manifest_sha256, read_manifest
from sharding.format.schema import (
    IMAGE_EXTENSIONS,
    OBJECTS,
    Sample,
    ShardError,
    check_objects,
    check_sample,
)
from sharding.format.shapes import manifest_shapes
from sharding.format.tar_scan import BAD_NAME, BLOCK_BYTES, Member, printable_name, scan
from sharding.reading.sample_reader import OpenTar, check_crc32, make_sample
from sharding.reading.sequential_reader import SequentialReader
from sharding.tools.threads import map_in_threads


@dataclass(frozen=True)
class Fault:
    """One thing wrong: the path of the tar (or folder), the sample's key if one, and the cause."""

    tar: str
    key: str | None
    cause: str


def verify_shard(tar: Path, *, full: bool) -> list[Fault]:
    """The faults of one shard, none if it is intact.

    Fast: the manifest parses and names this tar, and the tar has its size. Full: besides, the
    tar's SHA-256, every header where the manifest says and none that it does not account for,
    nothing but zeros after the last member, every sample's CRC-32, json and objects.
    """
    return _look(tar, full=full)[0]


def _look(tar: Path, *, full: bool) -> tuple[list[Fault], Manifest | None]:
    """The faults of a shard, and its manifest if that can be read."""
    manifest = None
    try:
        manifest = read_manifest(tar)
        source = OpenTar(tar)
        source.check_size(manifest)
    except ShardError as error:
        cause = str(error)
        if full and manifest is not None and tar.is_file():
            cause += f"; {_describe_headers(tar)}"
        return [Fault(str(tar), None, cause)], manifest
    if not full:
        return [], manifest
    return [Fault(str(tar), key, cause) for key, cause in _full_causes(source, manifest)], manifest


def _describe_headers(tar: Path) -> str:
    """What a tar of another size than its manifest's says of itself."""
    try:
        source = OpenTar(tar)
        num_members = sum(1 for _ in scan(source.read, source.num_bytes))
    except ShardError as error:
        return f"its headers say: {error}"
    return f"its headers are intact, {num_members} members: the tar is not the one of the manifest"


def _full_causes(source: OpenTar, manifest: Manifest) -> Iterator[tuple[str | None, str]]:
    """(key or None, cause) for everything wrong inside a tar of the right size."""
    forward = SequentialReader(source)
    accounted = {failure.key for failure in manifest.failures}
    accounted |= {note.key for note in manifest.notes}
    end = 0
    for entry in manifest.samples:
        payloads = {}
        for extension, (offset, length) in entry.members.items():
            name = f"{entry.key}.{extension}"
            if cause := _header_cause(source, name, (end, offset, length), accounted):
                yield entry.key, cause
            payloads[extension] = np.frombuffer(forward.read(offset, length), np.uint8)
            end = offset + length + -length % BLOCK_BYTES
        if cause := _sample_cause(payloads, entry):
            yield entry.key, cause
    if cause := _rest_cause(source, end, accounted):
        yield None, cause
    if (got := forward.sha256()) != manifest.sha256:
        cause = f"got SHA-256 {got}, expected {manifest.sha256}: the bytes have changed"
        yield None, cause + " since the manifest was written, or it is another tar's"


def _header_cause(
    source: OpenTar, name: str, place: tuple[int, int, int], accounted: set[str]
) -> str | None:
    """What is wrong before a member; place: end of the member before it, its offset and length.

    There must be its header, and in the tars of others those of members that were left out.
    """
    end, offset, length = place
    try:
        for member in _members(source, end, accounted):
            if member.offset >= offset:
                got = (f"{member.key}.{member.extension}", member.offset, member.num_bytes)
                if got == (name, offset, length):
                    return None
                return f"got a header of {got}, expected one of {(name, offset, length)}"
            if not accounted & {member.key, member.name}:
                return f"{name}: got {member.name!r} before it, which the manifest leaves out"
        return f"{name}: got the end of the tar, expected the member"
    except ShardError as error:
        return f"{name}: got a damaged header ({error}), expected one of the member"


def _members(source: OpenTar, start: int, accounted: set[str]) -> Iterator[Member]:
    """The files from the header at `start` on; ShardError as `scan`, and for a link, a device or a
    refused name that the manifest does not note."""

    def check_noted(key: str, got: str) -> None:
        if key not in accounted:
            raise ShardError(f"got {got}, which the manifest does not note")

    return scan(
        source.read,
        source.num_bytes,
        start=start,
        on_no_file=lambda name, kind: check_noted(printable_name(name), f"{kind}, {name!r}"),
        on_bad_name=lambda fault: check_noted(BAD_NAME, fault.removeprefix("got ")),
    )


def _rest_cause(source: OpenTar, end: int, accounted: set[str]) -> str | None:
    """What is wrong after the last sample, where the end of the tar must be."""
    try:
        for member in _members(source, end, accounted):
            if not accounted & {member.key, member.name}:
                return f"got {member.name!r} after byte {end}, expected the end of the tar"
    except ShardError as error:
        return f"got no end of the tar after byte {end}: {error}"
    return None


def _sample_cause(payloads: Mapping[str, np.ndarray], entry: SampleEntry) -> str | None:
    """What is wrong with a sample's payloads."""
    try:
        check_crc32(payloads, entry)
        check_entry(make_sample(payloads, entry), entry)
    except ShardError as error:
        return str(error)
    return None


def check_entry(sample: Sample, entry: SampleEntry) -> None:
    """ShardError unless a sample is intact and of the size that its entry says."""
    # The pictures of others may be webp, which our own shards never hold.
    check_sample(replace(sample, extension=IMAGE_EXTENSIONS[0]))
    if sample.objects is not None:
        check_objects(sample.objects)
    size = (sample.info["width"], sample.info["height"])
    if size != (entry.width, entry.height):
        raise ShardError(
            f"got {size} px in the json, expected {(entry.width, entry.height)} of the manifest"
        )


def verify_paths(
    paths: str | Path | Iterable[str | Path],
    *,
    full: bool = True,
    on_shard: Callable[[int, int], None] = lambda num_done, num_shards: None,
) -> list[Fault]:
    """The faults of tars, of folders of shards, and of run folders that hold such folders.

    A folder of shards is checked against its catalog.json and its file of shapes, too, and no key
    may be in two of its shards. Holds 8 bytes a sample of a folder.

    paths: one, or several. full: read the tars, too, every byte.
    on_shard: called after each shard with the numbers checked and in all.
    """
    faults: list[Fault] = []
    folders: list[_Folder] = []
    by_folder: dict[Path, set[str]] = {}
    for path in map(Path, [paths] if isinstance(paths, (str, Path)) else paths):
        if not path.exists() and path.suffix != ".tar":
            cause = "got no file or folder there, expected a tar, a folder of tars, or a run folder"
            faults.append(Fault(str(path), None, cause))
        elif not path.is_dir():
            by_folder.setdefault(path.parent, set()).add(path.name)
        elif inside := _folders_in(path):
            folders += inside
        else:
            cause = "got no shards, expected a tar, a folder of tars, or a run folder"
            faults.append(Fault(str(path), None, cause))
    folders += [_Folder(parent, names, None) for parent, names in by_folder.items()]
    num_shards = sum(len(folder.tars) for folder in folders)
    num_done = 0
    for folder in folders:
        faults += folder.faults
        for found in folder.look(full=full):
            faults += found
            num_done += 1
            on_shard(num_done, num_shards)
        faults += folder.repeated_keys()
    return faults


class _Folder:
    """Shards of one folder to verify, by name, compared with each other and with its catalog.

    catalog: None for tars that were named one by one. faults: of the folder as a whole.
    """

    def __init__(self, path: Path, tars: Iterable[str], catalog: Catalog | None) -> None:
        self.tars = sorted(tars)
        self.faults: list[Fault] = []
        self._path = path
        self._catalog = catalog
        self._shards: dict[str, ShardEntry] = {}
        self._shapes: dict[str, np.ndarray] = {}
        self._keys = KeyDigests[str]()
        if catalog is not None:
            self._shards = {shard.tar: shard for shard in catalog.shards}
            self._take_shapes(catalog)

    def _take_shapes(self, catalog: Catalog) -> None:
        """Parts the file of shapes into those of each shard."""
        try:
            shapes = read_shapes(self._path, catalog)
        except ShardError as error:
            self.faults.append(Fault(str(self._path), None, str(error)))
            return
        if shapes is not None:
            ends = np.cumsum([shard.num_ok for shard in catalog.shards])
            self._shapes = dict(zip(self._shards, np.split(shapes, ends[:-1])))

    def look(self, *, full: bool) -> Iterator[list[Fault]]:
        """The faults of each shard by itself or, if it has none, of what the catalog says of it."""
        looked = map_in_threads(partial(self._look_at, full=full), self.tars)
        for name, (faults, keys) in zip(self.tars, looked):
            # Here and not in the threads: the keys must come in the order of the shards.
            self._keys.add(name, keys)
            yield faults

    def _look_at(self, name: str, *, full: bool) -> tuple[list[Fault], list[str]]:
        """The faults of a shard, and its keys, none if its manifest cannot be read."""
        tar = self._path / name
        faults, manifest = _look(tar, full=full)
        if manifest is None:
            return faults, []
        if self._catalog is not None and not faults:
            causes = self._catalog_causes(self._catalog, tar, manifest)
            faults = [Fault(str(tar), key, cause) for key, cause in causes]
        return faults, [entry.key for entry in manifest.samples]

    def _catalog_causes(
        self, catalog: Catalog, tar: Path, manifest: Manifest
    ) -> Iterator[tuple[str | None, str]]:
        """(key or None, cause) where a shard that is intact disagrees with its folder's catalog."""
        shard = self._shards[tar.name]
        got = (manifest.tar_bytes, manifest.num_input, manifest.num_ok, manifest.num_failed)
        expected = (shard.bytes, shard.num_input, shard.num_ok, shard.num_failed)
        if manifest_sha256(tar) != shard.manifest_sha256:
            yield (
                None,
                (
                    f"got another manifest than {catalogs.NAME} saw: the shard has been written again "
                    "since; run the stage that writes the folder to its end"
                ),
            )
        elif got != expected:
            yield (
                None,
                (f"got bytes, input, ok, failed {got}, expected {expected} of {catalogs.NAME}"),
            )
        elif tar.name in self._shapes and not np.array_equal(
            self._shapes[tar.name], manifest_shapes(manifest)
        ):
            yield None, "got other sizes of its pictures in the folder's file of shapes"
        for entry in manifest.samples:
            if (OBJECTS in entry.members) != (catalog.kind == "objects"):
                yield entry.key, f"got {tuple(entry.members)} in a folder of {catalog.kind}"

    def repeated_keys(self) -> list[Fault]:
        """A fault for every two shards that share keys, the first one with each other; only what
        names a key is read again."""
        shared: dict[tuple[str, str], list[int]] = {}
        for (first, _), *others in self._keys.repeated():
            for name, row in others:
                shared.setdefault((first, name), []).append(row)
        return [
            Fault(
                str(self._path / name),
                read_manifest(self._path / name).samples[min(rows)].key,
                f"got {len(rows)} keys, this is the first, that "
                f"are in {first} as well, expected every key once in the data set",
            )
            for (first, name), rows in shared.items()
        ]


def _folders_in(path: Path) -> list[_Folder]:
    """The folder itself if it holds shards, else those of a run folder that do."""
    candidates = [path] if _is_shard_folder(path) else sorted(path.iterdir())
    return [_open(folder) for folder in candidates if _is_shard_folder(folder)]


def _is_shard_folder(path: Path) -> bool:
    if not path.is_dir():
        return False
    return (path / catalogs.NAME).exists() or any(path.glob("*.tar"))


def _open(path: Path) -> _Folder:
    """A folder of shards with its catalog and, if that is missing or broken, the fault."""
    # A manifest without its tar counts as well: the tar has been deleted.
    present = {tar.name for tar in path.glob("*.tar")}
    present |= {manifest.name.removesuffix(".json") for manifest in path.glob("*.tar.json")}
    try:
        catalog = read_catalog(path)
    except ShardError as error:
        folder = _Folder(path, present, None)
        folder.faults.append(Fault(str(path), None, str(error)))
        return folder
    listed = {shard.tar for shard in catalog.shards}
    folder = _Folder(path, listed, catalog)
    for name in sorted(present - listed):
        cause = f"got a shard that {catalogs.NAME} does not list, expected it there or removed"
        folder.faults.append(Fault(str(path / name), None, cause))
    return folder
