"""The manifest NAME.tar.json of a tar: its samples byte for byte, and the fingerprint of its
inputs.

Written last by sharding.writing.shard_writer: a shard is done when its manifest says so and for no
other reason. Readers take the place of every member from here, never from the tar's own headers. A
sample's CRC-32 (zlib, unsigned) runs over the payloads of its members, concatenated in the order in
which they lie in the tar: picture, json, objects in the tars that sharding.writing.shard_writer
writes; any order in the tars of others, whose manifests sharding.tools.index makes.

A manifest may come from an unknown source: its length is bounded, and so is the memory that reading
it takes, at some twenty-five times MAX_MANIFEST_BYTES.
"""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharding.format.likely_cause import likely_cause
from sharding.format.schema import (
    IMAGE_EXTENSIONS,
    JSON,
    OBJECTS,
    Failure,
    Note,
    ShardError,
    check_key,
)
from sharding.writing.atomic import canonical_json, sha256_file

SCHEMA = "boxless/manifest/1"
MAX_MANIFEST_BYTES = 32 << 20  # for as many samples as sharding.format.tar_scan lets a tar have
MAX_SAMPLE_BYTES = 1 << 30  # from its first to its last byte; a sample is read as one piece
MAX_SIDE_PX = (1 << 31) - 1
PICTURE_EXTENSIONS = (*IMAGE_EXTENSIONS, "jpeg")
TEXT = "txt"
_OURS = {(image, JSON, *objects) for image in IMAGE_EXTENSIONS for objects in ((), (OBJECTS,))}
_BY_PLACE = operator.itemgetter(1)


@dataclass(frozen=True)
class SampleEntry:
    """One sample: key, size in pixels, CRC-32, and {extension: (offset, length)} in the tar.

    Offsets are those of the payloads, in bytes; members are in the order of the tar: one picture,
    a json or a txt or both, and perhaps objects.npy. Ours have no txt.
    """

    key: str
    width: int
    height: int
    crc32: int
    members: dict[str, tuple[int, int]]

    @property
    def extension(self) -> str:
        """That of the picture, one of PICTURE_EXTENSIONS; in our own tars one of
        IMAGE_EXTENSIONS."""
        return next(extension for extension in self.members if extension in PICTURE_EXTENSIONS)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a shard holds; num_input = num_ok + num_failed.

    tar: file name. tar_bytes: its size. sha256: of the whole tar, in hex. samples: in the order of
    the tar. failures: inputs that gave no sample. notes: what was dropped inside kept samples.
    fingerprint: everything that shaped the output, by name.
    """

    tar: str
    tar_bytes: int
    sha256: str
    samples: Sequence[SampleEntry]
    failures: tuple[Failure, ...]
    notes: tuple[Note, ...]
    fingerprint: dict[str, str]

    @property
    def num_ok(self) -> int:
        """Inputs that became samples."""
        return len(self.samples)

    @property
    def num_failed(self) -> int:
        """Inputs that gave no sample."""
        return len(self.failures)

    @property
    def num_input(self) -> int:
        """All inputs of this shard."""
        return self.num_ok + self.num_failed


def manifest_path(tar: Path) -> Path:
    """NAME.tar -> NAME.tar.json in the same folder."""
    return tar.with_name(tar.name + ".json")


def manifest_bytes(manifest: Manifest) -> bytes:
    """The content of a manifest file: canonical JSON, so equal manifests are equal files."""
    counts = {"input": manifest.num_input, "ok": manifest.num_ok, "failed": manifest.num_failed}
    return (
        canonical_json(
            {
                "schema": SCHEMA,
                "tar": manifest.tar,
                "bytes": manifest.tar_bytes,
                "sha256": manifest.sha256,
                "counts": counts,
                "samples": [vars(entry) for entry in manifest.samples],
                "failures": [vars(failure) for failure in manifest.failures],
                "notes": [vars(note) for note in manifest.notes],
                "fingerprint": manifest.fingerprint,
            }
        )
        + b"\n"
    )


def read_manifest(tar: str | Path) -> Manifest:
    """The manifest of `tar`; ShardError if it is missing or invalid.

    The tar itself is not touched, so that manifests can be read where the tars are remote.
    """
    tar = Path(tar)
    return parse_manifest(read_manifest_bytes(tar), tar)


def read_manifest_bytes(tar: Path) -> bytes:
    """The manifest file of `tar`, unread; ShardError if it is missing or too long to be one."""
    path = manifest_path(tar)
    try:
        with open(path, "rb") as source:
            file = os.fstat(source.fileno())
            _check_length(file.st_size, path)
            return source.read(file.st_size)
    except OSError as error:
        raise ShardError(
            f"{path}: got no manifest ({error.strerror}), expected one beside the tar; "
            "the shard is unfinished or not ours: run the stage that writes it again"
        ) from error


def parse_manifest(data: bytes, tar: Path, *, lazily: bool = False) -> Manifest:
    """The manifest of `tar` from the bytes of its file; ShardError if it is invalid.

    lazily: for bytes whose hash the catalog knows. Each sample is checked when it is asked for,
    and ShardError comes then: one of many workers needs few of them.
    """
    path = manifest_path(tar)
    _check_length(len(data), path)
    try:
        return _manifest(json.loads(data), tar.name, lazily)
    except ShardError as error:
        raise ShardError(f"{path}: {error}") from error
    # Whatever a damaged or hostile file makes the parser stumble over; deep nesting recurses.
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ShardError(
            f"{path}: got {type(error).__name__}: {error}{likely_cause(data)}, expected a manifest of "
            f"schema {SCHEMA}; run the stage that writes the shard again"
        ) from error


def _check_length(num_bytes: int, path: Path) -> None:
    if num_bytes > MAX_MANIFEST_BYTES:
        raise ShardError(
            f"{path}: got {num_bytes} bytes, expected at most {MAX_MANIFEST_BYTES} for one shard; "
            "split the shard into several"
        )


def _manifest(raw: dict[str, Any], name: str, lazily: bool) -> Manifest:
    _expect("schema", raw["schema"], SCHEMA)
    _expect("tar", raw["tar"], name)
    tar_bytes = raw["bytes"]
    if type(tar_bytes) is not int or tar_bytes < 0:
        raise ShardError(f"bytes: got {tar_bytes!r}, expected an int >= 0")
    samples: Sequence[SampleEntry] = _Entries(raw["samples"], tar_bytes)
    if not lazily:
        samples = tuple(_entry(entry) for entry in raw["samples"])
        _check_layout(samples, tar_bytes)
    fingerprint = raw["fingerprint"]
    if not all(isinstance(value, str) for value in fingerprint.values()):
        raise ShardError(f"fingerprint: got {fingerprint}, expected names and texts")
    "".join([*fingerprint, *fingerprint.values()]).encode()
    sha256 = raw["sha256"]
    if len(bytes.fromhex(sha256)) != 32:
        raise ShardError(f"sha256: got {sha256!r}, expected 64 hex digits")
    manifest = Manifest(
        tar=name,
        tar_bytes=tar_bytes,
        sha256=sha256,
        samples=samples,
        failures=tuple(Failure(**_texts(failure)) for failure in raw["failures"]),
        notes=tuple(Note(**_texts(note)) for note in raw["notes"]),
        fingerprint=fingerprint,
    )
    _expect(
        "counts",
        raw["counts"],
        {"input": manifest.num_input, "ok": manifest.num_ok, "failed": manifest.num_failed},
    )
    return manifest


class _Entries(Sequence[SampleEntry]):
    """The samples of a manifest's json, parsed and checked on access."""

    def __init__(self, raw: list[dict[str, Any]], tar_bytes: int) -> None:
        if not isinstance(raw, list):
            raise TypeError(f"samples: {type(raw).__name__}")
        self._raw, self._tar_bytes = raw, tar_bytes

    def __len__(self) -> int:
        return len(self._raw)

    def __getitem__(self, index: Any) -> Any:
        raw = self._raw[index]
        try:
            entry = _entry(raw)
            _check_layout((entry,), self._tar_bytes)
        except ShardError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ShardError(
                f"sample {index}: got {type(error).__name__}: {error}, expected one of a manifest"
            ) from error
        return entry


def _entry(raw: dict[str, Any]) -> SampleEntry:
    """A sample of the file: types, bounds and members are valid; places are not checked."""
    entry = SampleEntry(
        raw["key"],
        raw["width"],
        raw["height"],
        raw["crc32"],
        # JSON has them sorted by name, the tar by place.
        {
            name: (first, length)
            for name, (first, length) in sorted(raw["members"].items(), key=_BY_PLACE)
        },
    )
    check_key(entry.key)
    extensions = tuple(entry.members)
    if extensions not in _OURS and not _are_valid(extensions):
        raise ShardError(
            f"sample {entry.key}: got members {extensions}, expected a picture with json or txt, "
            f"and perhaps {OBJECTS}"
        )
    width, height, crc32 = entry.width, entry.height, entry.crc32
    if (
        not type(width) is type(height) is type(crc32) is int
        or len(raw) != 5
        or not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX and 0 <= crc32 < 1 << 32)
    ):
        raise ShardError(f"sample {entry.key}: got {raw}, expected a size in pixels and a CRC-32")
    return entry


def _are_valid(extensions: Collection[str]) -> bool:
    """Whether these may be the members of a sample of any origin."""
    others = set(extensions).difference(PICTURE_EXTENSIONS)
    return (
        len(extensions) == len(others) + 1
        and bool(others & {JSON, TEXT})
        and others <= {JSON, TEXT, OBJECTS}
    )


def _check_layout(samples: Sequence[SampleEntry], tar_bytes: int) -> None:
    """ShardError unless keys are unique and members are consecutive inside the tar."""
    end = 0
    for entry in samples:
        places = entry.members.values()
        for offset, length in places:
            if not type(offset) is type(length) is int or offset < end or length < 0:
                raise ShardError(
                    f"sample {entry.key}: got {length!r} bytes at byte {offset!r}, expected whole "
                    f"numbers, and no member before byte {end}, where the last one ends"
                )
            end = offset + length
        if end > tar_bytes or end - next(iter(places))[0] > MAX_SAMPLE_BYTES:
            raise ShardError(
                f"sample {entry.key}: got {tuple(places)}, expected its members inside a tar of "
                f"{tar_bytes} bytes and within {MAX_SAMPLE_BYTES} bytes of each other"
            )
    if len({entry.key for entry in samples}) != len(samples):
        raise ShardError("samples: got a key twice, expected every key once")


def _expect(what: str, got: object, expected: object) -> None:
    if got != expected:
        raise ShardError(f"{what}: got {got!r}, expected {expected!r}")


def _texts(raw: dict[str, Any]) -> dict[str, str]:
    if not all(isinstance(value, str) for value in raw.values()):
        raise ShardError(f"failures, notes: got {raw}, expected a key and a reason")
    "".join(raw.values()).encode()  # half of a surrogate pair could not be written again
    return raw


def manifest_sha256(tar: Path) -> str:
    """SHA-256, in hex, of the manifest file of `tar`; it identifies the shard's whole content."""
    return sha256_file(manifest_path(tar))


def is_done(tar: Path, fingerprint: Mapping[str, str]) -> bool:
    """Whether `tar` is finished and was shaped by `fingerprint`; missing or broken is False.

    Done means: the manifest parses, the tar has the size it says, the fingerprints are equal.
    """
    try:
        manifest = read_manifest(tar)
        return tar.stat().st_size == manifest.tar_bytes and manifest.fingerprint == fingerprint
    except (ShardError, OSError):
        return False
