"""Writes manifests and a catalog for existing tars, such as webdataset's and img2dataset's.

The members KEY.EXT with the same KEY that are consecutive are one input
(sharding.format.tar_scan.Member says how a name is parted). It becomes a sample with a picture
(jpg, jpeg, png, webp), a caption (json or txt) and perhaps objects.npy, all of which
sharding.reading.sample_reader reads as it would read ours; what does not becomes a failure with
its reason. Every other member is left out of the manifest, with a note, so that nothing ever reads
it: no pickle, for one.

Nothing of a tar is believed: each member is bounded before it is read, and one sample is in memory
at a time. Every byte is read once. The same tar gives the same manifest.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from zlib_ng import zlib_ng

from sharding.format.catalog import NAME, Catalog, read_catalog, write_catalog
from sharding.format.image_size import picture_size
from sharding.format.manifest import (
    MAX_SAMPLE_BYTES,
    PICTURE_EXTENSIONS,
    TEXT,
    Manifest,
    SampleEntry,
    manifest_bytes,
    manifest_path,
    read_manifest,
)
from sharding.format.schema import JSON, OBJECTS, Failure, Note, ShardError, check_key
from sharding.format.tar_scan import APART, BAD_NAME, FIRST_DOT, Member, printable_name, scan
from sharding.reading.sample_reader import OpenTar, make_sample
from sharding.reading.sequential_reader import SequentialReader
from sharding.tools.tar_names import other_tars
from sharding.tools.threads import map_in_threads
from sharding.tools.verify import check_entry
from sharding.writing.atomic import remove_stale, write_bytes

VERSION = "index/1"
ABOUT = {"index": VERSION}  # in the catalog, by which it is known from those of stages
HELDOUT_NAMES = ("heldout", "val", "valid", "validation", "dev", "test")
NUM_REFUSED_SHOWN = 10
# What a member may take; a json takes some twenty times as much when it is parsed.
_MAX_BYTES = {
    **dict.fromkeys(PICTURE_EXTENSIONS, 128 << 20),
    OBJECTS: 128 << 20,
    JSON: 4 << 20,
    TEXT: 4 << 20,
}
_MAX_JSON_DEPTH = 64
_MAX_QUOTED = 300  # characters of what a tar says itself


def index_tar(tar: Path, *, fingerprint: Mapping[str, str] | None = None) -> Manifest:
    """The manifest of a tar that has none, made from its bytes; it is not written.

    fingerprint: instead of {"index": VERSION, "tar": the tar's SHA-256}.
    Raises ShardError, naming the byte, if the tar is cut or damaged: then no sample of it can be
    trusted. Links, devices and members whose names are refused (absolute and parent paths, what
    cannot be printed) are left out, with a note.
    """
    try:
        source = SequentialReader(OpenTar(tar))
        found = list(_results(source))
        sha256 = source.sha256()
    except ShardError as error:
        raise ShardError(f"{tar}: {error}") from error
    return Manifest(
        tar=tar.name,
        tar_bytes=source.num_bytes,
        sha256=sha256,
        samples=tuple(one for one in found if isinstance(one, SampleEntry)),
        failures=tuple(one for one in found if isinstance(one, Failure)),
        notes=tuple(one for one in found if isinstance(one, Note)),
        fingerprint=dict(fingerprint or {"index": VERSION, "tar": sha256}),
    )


def _results(source: SequentialReader) -> Iterator[SampleEntry | Failure | Note]:
    """The samples, failures and notes of a tar's inputs."""
    keys, stems = set[str](), set[str]()
    # Members of no sample, as macOS' "._0.jpg", may be between those of one.
    of_no_sample: list[str] = []
    no_files: list[tuple[str, str]] = []
    bad_names: list[str] = []
    headers = scan(
        source.read,
        source.num_bytes,
        on_no_file=lambda name, kind: no_files.append((name, kind)),
        on_bad_name=bad_names.append,
    )
    named = _with_stem(headers, of_no_sample.append)
    for stem, members in itertools.groupby(named, key=lambda member: member.stem):
        first = next(members)
        draft = _Draft(first.key)
        for member in itertools.chain([first], members):
            draft.add(member, source)
        if draft.key in keys:
            reason = f"duplicate: the tar has an input of this key before {stem!r}"
            hint = f"; {APART}" if stem in stems else ""
            yield Failure(key=draft.key, reason=reason + hint)
            continue
        keys.add(draft.key)
        stems.add(stem)
        yield from draft.finish()
    for name in of_no_sample:
        yield Note(key=name, reason="left out: of no sample")
    for name, kind in no_files:
        yield Note(key=printable_name(name), reason=f"left out: {kind}")
    for fault in bad_names:
        yield Note(key=BAD_NAME, reason=f"left out: {fault}")


def _with_stem(members: Iterator[Member], on_other: Callable[[str], None]) -> Iterator[Member]:
    """The members that name a sample; the names of the others go to `on_other`."""
    for member in members:
        if member.stem:
            yield member
        else:
            on_other(member.name)


class _Draft:
    """One input while its members come by, in the order of the tar."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._places: dict[str, tuple[int, int]] = {}
        self._payloads: dict[str, bytes] = {}
        self._left_out: list[str] = []
        self._fault = ""

    def add(self, member: Member, source: SequentialReader) -> None:
        """Takes a member; it is read if a sample may have it and it is not too large."""
        extension = member.extension
        pictures = self._places.keys() & PICTURE_EXTENSIONS
        if extension in self._places:
            self._fault = self._fault or f"duplicate: got {extension} twice"
        elif extension not in _MAX_BYTES or (pictures and extension in PICTURE_EXTENSIONS):
            self._left_out.append(extension)
        elif member.num_bytes > _MAX_BYTES[extension]:
            self._fault = self._fault or (
                f"too large: got {extension} of {member.num_bytes} bytes, expected at most "
                f"{_MAX_BYTES[extension]}"
            )
        else:
            self._places[extension] = (member.offset, member.num_bytes)
            self._payloads[extension] = source.read(member.offset, member.num_bytes)

    def finish(self) -> Iterator[SampleEntry | Failure | Note]:
        """The sample and a note on what was left out of it, or a single failure."""
        try:
            if self._fault:
                raise ShardError(self._fault)
            yield self._entry()
        except ShardError as error:
            yield Failure(key=self.key, reason=str(error))
            return
        if self._left_out:
            yield Note(key=self.key, reason=f"left out: {_listed(self._left_out)}")

    def _entry(self) -> SampleEntry:
        """The entry of the sample; ShardError with the reason why it is none."""
        check_key(self.key)
        picture = next((name for name in self._places if name in PICTURE_EXTENSIONS), None)
        if picture is None:
            raise ShardError(self._why_no_picture())
        if self._places.keys().isdisjoint((JSON, TEXT)):
            raise ShardError(f"no caption: got {_listed(self._places)}, expected json or txt")
        (first, _), *_ = places = list(self._places.values())
        if (span := sum(places[-1]) - first) > MAX_SAMPLE_BYTES:
            raise ShardError(f"too large: got {span} bytes, expected at most {MAX_SAMPLE_BYTES}")
        width, height = picture_size(self._payloads[picture])
        crc32 = 0
        for payload in self._payloads.values():
            crc32 = zlib_ng.crc32(payload, crc32)
        entry = SampleEntry(self.key, width, height, crc32, self._places)
        _check_sample(self._payloads, entry)
        return entry

    def _why_no_picture(self) -> str:
        """What there is instead, and what img2dataset says of a picture that it could not get."""
        reason = f"no picture: got {_listed([*self._places, *self._left_out])}"
        try:
            info = json.loads(self._payloads.get(JSON, b"{}"))
            reported = info.get("error_message") or info.get("status")
        except (ValueError, AttributeError, RecursionError):
            reported = None
        if reported:
            return f"{reason}; it says {reported!r:.{_MAX_QUOTED}}"
        pictures = tuple(f".{extension}" for extension in PICTURE_EXTENSIONS)
        is_dotted = any(extension.endswith(pictures) for extension in self._left_out)
        return f"{reason}; {FIRST_DOT}" if is_dotted else reason


def _listed(names: Iterable[str]) -> str:
    """Names from a tar, which may be many and long."""
    return f"{', '.join(names):.{_MAX_QUOTED}}"


def _check_sample(payloads: Mapping[str, bytes], entry: SampleEntry) -> None:
    """ShardError unless reading gives a valid sample with a caption, and nothing absurdly deep."""
    arrays = {name: np.frombuffer(data, np.uint8) for name, data in payloads.items()}
    sample = make_sample(arrays, entry)
    if _is_deep(sample.info):
        raise ShardError(f"json: got one nested over {_MAX_JSON_DEPTH} deep, expected a flat one")
    check_entry(sample, entry)
    captions = "".join(sample.info["captions"])
    if not captions.strip():
        raise ShardError("no caption: got blank ones or none in json and txt")
    try:
        captions.encode()
    except UnicodeEncodeError as error:
        raise ShardError(f"captions: got {error}, expected text") from error


def _is_deep(info: dict[str, Any]) -> bool:
    """Whether a json is nested over _MAX_JSON_DEPTH deep; others would recurse over it."""
    level: list[Any] = [info]
    for _ in range(_MAX_JSON_DEPTH):
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [one for one in itertools.chain(*inner) if isinstance(one, (dict, list))]
    return bool(level)


def split_of_name(tar: str) -> str:
    """The split of a tar by the first word of its name: "heldout" for HELDOUT_NAMES, else
    "train"."""
    first = re.split(r"[^a-z]", tar.lower(), maxsplit=1)[0]
    return "heldout" if first in HELDOUT_NAMES else "train"


def index_folder(
    folder: str | Path,
    *,
    split_of: Callable[[str], str] = split_of_name,
    on_shard: Callable[[int, int], None] = lambda num_done, num_shards: None,
) -> Catalog:
    """Writes a manifest beside every tar of `folder` that has none, and catalog.json.

    A manifest that is there stays, after its tar has been checked against it: so to run again does
    no harm, and never covers up damage. Kind "objects" if every sample has objects, "images" if
    none has.

    split_of: the split of a tar, by its name. on_shard: called after each tar with the numbers done
    and in all. Raises ShardError, once all tars have been read, if some cannot be indexed; and
    if there is no sample, if only some have objects, if a key is in two tars, or if the folder has
    a catalog that a stage wrote.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ShardError(f"{folder}: got no folder there, expected one of tars")
    tars = sorted(folder.glob("*.tar"))
    if lost := [tar.name for tar in tars if not tar.is_file()]:
        raise ShardError(
            f"{folder}: got {', '.join(lost[:NUM_REFUSED_SHOWN])}, no file or a link that points "
            "nowhere; add these tars, or remove their names"
        )
    if not tars:
        others = "; ".join(other_tars(folder)[:NUM_REFUSED_SHOWN])
        raise ShardError(
            f"{folder}: got no tars{f' but {others}' if others else ''}, expected shards as "
            "00000.tar, not in subfolders"
        )
    if odd := [tar.name for tar in tars if not tar.name.isprintable()]:
        raise ShardError(
            f"{folder}: got odd names, as {odd[0]!r}, expected shards as 00000.tar: rename them"
        )
    if (folder / NAME).exists() and read_catalog(folder).metadata != ABOUT:
        raise ShardError(
            f"{folder}: got the {NAME} of a stage, expected tars that others wrote; to repair a "
            "folder of ours run boxless repair"
        )
    remove_stale(folder, {manifest_path(tar).name for tar in tars})
    num_samples, num_with_objects = _index_tars(tars, on_shard)
    if num_with_objects not in (0, num_samples) or not num_samples:
        raise ShardError(
            f"{folder}: got {num_samples} samples, {num_with_objects} with {OBJECTS}, expected "
            f"some, and objects in all or in none ({_first_reasons(tars)}); what is wrong with each "
            "input is in its manifest"
        )
    kind = "objects" if num_with_objects else "images"
    splits = {tar.name: split_of(tar.name) for tar in tars}
    return write_catalog(folder, kind=kind, splits=splits, metadata=ABOUT)


def _first_reasons(tars: Sequence[Path]) -> str:
    """Why the first inputs of the tars are no samples, or were left out."""
    every = (
        f"{tar.name}: {key}: {reason}"
        for tar in tars
        for key, reason in _reasons(read_manifest(tar))
    )
    return "; ".join(itertools.islice(every, NUM_REFUSED_SHOWN)) or "the tars hold no inputs"


def _reasons(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield from ((failure.key, failure.reason) for failure in manifest.failures)
    yield from ((note.key, note.reason) for note in manifest.notes)


def catalog_lines(catalog: Catalog) -> Iterator[str]:
    """What a folder of shards holds, for people."""
    num_input = sum(shard.num_input for shard in catalog.shards)
    num_failed = num_input - catalog.num_ok
    yield (
        f"{len(catalog.shards)} shards of {catalog.kind}: {num_input} inputs = {catalog.num_ok} ok "
        f"+ {num_failed} failed"
    )
    for split in sorted({shard.split for shard in catalog.shards}):
        shards = catalog.of_split(split)
        num_samples = sum(shard.num_ok for shard in shards)
        yield f"  {split}: {num_samples} samples in {len(shards)} shards"
    if num_failed:
        yield "each NAME.tar.json lists why inputs failed and what was left out"


def _index_tars(tars: Sequence[Path], on_shard: Callable[[int, int], None]) -> tuple[int, int]:
    """How many samples the tars have, and how many of these with objects; writes the manifests."""
    num_samples = num_with_objects = 0
    refused = []
    for num_done, found in enumerate(map_in_threads(_counts, tars), start=1):
        if isinstance(found, ShardError):
            refused.append(str(found))
        else:
            num_samples += found[0]
            num_with_objects += found[1]
        on_shard(num_done, len(tars))
    if refused:
        shown = "\n".join(refused[:NUM_REFUSED_SHOWN])
        raise ShardError(
            f"{len(refused)} of {len(tars)} tars cannot be indexed; move them away or "
            f"replace them, then run again (the others need not be read again):\n{shown}"
        )
    return num_samples, num_with_objects


def _counts(tar: Path) -> tuple[int, int] | ShardError:
    """How many samples a tar has, and how many with objects; writes its manifest if it has none."""
    try:
        if manifest_path(tar).exists():
            manifest = read_manifest(tar)
            if SequentialReader(OpenTar(tar)).sha256() != manifest.sha256:
                raise ShardError(
                    f"{tar}: got other bytes than its manifest says: damaged or replaced since; "
                    f"restore the tar, or remove {manifest_path(tar).name} to index it again"
                )
        else:
            manifest = index_tar(tar)
            write_bytes(manifest_path(tar), manifest_bytes(manifest))
    except ShardError as error:
        return error
    return manifest.num_ok, sum(OBJECTS in entry.members for entry in manifest.samples)
