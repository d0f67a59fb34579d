"""The manifest NAME.tar.json beside a tar: what is in it, byte for byte, and what shaped it.

Written last by sharding.write: a shard is done when its manifest says so and for no other reason.
Readers take the place of every member from here, never from the tar's own headers. A sample's
CRC-32 (zlib, unsigned) runs over the payloads of its members, concatenated in the order in which
they lie in the tar: picture, json, objects.
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharding.atomic import canonical_json, sha256_file
from sharding.schema import (
    IMAGE_EXTENSIONS, JSON, OBJECTS, Failure, Note, ShardError, check_key
)

SCHEMA = "boxless/manifest/1"


@dataclass(frozen=True)
class SampleEntry:
    """One sample: key, size in pixels, CRC-32, and {extension: (offset, length)} in the tar.

    Offsets are those of the payloads, in bytes; members are in the order of the tar.
    """

    key: str
    width: int
    height: int
    crc32: int
    members: dict[str, tuple[int, int]]

    @property
    def extension(self) -> str:
        """"jpg" or "png": the extension of the picture, which is the first member."""
        return next(iter(self.members))


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
    samples: tuple[SampleEntry, ...]
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
    return canonical_json({
        "schema": SCHEMA,
        "tar": manifest.tar,
        "bytes": manifest.tar_bytes,
        "sha256": manifest.sha256,
        "counts": counts,
        "samples": [vars(entry) for entry in manifest.samples],
        "failures": [vars(failure) for failure in manifest.failures],
        "notes": [vars(note) for note in manifest.notes],
        "fingerprint": manifest.fingerprint,
    }) + b"\n"


def read_manifest(tar: Path) -> Manifest:
    """The manifest of `tar`; ShardError if it is missing or odd in any way.

    The tar itself is not touched, so that manifests can be read where the tars are far away.
    """
    return parse_manifest(read_manifest_bytes(tar), tar)


def read_manifest_bytes(tar: Path) -> bytes:
    """The manifest file of `tar`, unread; ShardError if it is missing."""
    path = manifest_path(tar)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ShardError(
            f"{path}: got no manifest ({error.strerror}), expected one beside the tar; "
            "the shard is unfinished or not ours: run the stage that writes it again"
        ) from error


def parse_manifest(data: bytes, tar: Path) -> Manifest:
    """The manifest of `tar` from the bytes of its file; ShardError if it is odd in any way."""
    try:
        return _manifest(json.loads(data), tar.name)
    except ShardError as error:
        raise ShardError(f"{manifest_path(tar)}: {error}") from error
    # Whatever a damaged or hostile file makes the parser stumble over; deep nesting recurses.
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ShardError(
            f"{manifest_path(tar)}: got {type(error).__name__}: {error}, expected a manifest of "
            f"schema {SCHEMA}; run the stage that writes the shard again"
        ) from error


def _manifest(raw: dict[str, Any], name: str) -> Manifest:
    _expect("schema", raw["schema"], SCHEMA)
    _expect("tar", raw["tar"], name)
    tar_bytes = _natural(raw["bytes"], "bytes")
    samples = tuple(_entry(entry) for entry in raw["samples"])
    _check_layout(samples, tar_bytes)
    fingerprint = raw["fingerprint"]
    if not all(isinstance(value, str) for value in fingerprint.values()):
        raise ShardError(f"fingerprint: got {fingerprint}, expected names and texts")
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
    _expect("counts", raw["counts"], {
        "input": manifest.num_input, "ok": manifest.num_ok, "failed": manifest.num_failed
    })
    return manifest


def _entry(raw: dict[str, Any]) -> SampleEntry:
    key = raw["key"]
    check_key(key)
    members = {
        extension: (_natural(offset, key), _natural(length, key))
        for extension, (offset, length) in sorted(raw["members"].items(), key=lambda m: m[1])
    }
    extensions = tuple(members)
    if extensions[:1] not in [(one,) for one in IMAGE_EXTENSIONS] or extensions[1:] not in [
        (JSON,), (JSON, OBJECTS)
    ]:
        raise ShardError(f"sample {key}: got members {extensions}, expected picture, json, objects")
    width, height = _natural(raw["width"], key), _natural(raw["height"], key)
    crc32 = _natural(raw["crc32"], key)
    if width < 1 or height < 1 or crc32 >= 1 << 32 or len(raw) != 5:
        raise ShardError(f"sample {key}: got {raw}, expected a size in pixels and a CRC-32")
    return SampleEntry(key, width, height, crc32, members)


def _check_layout(samples: tuple[SampleEntry, ...], tar_bytes: int) -> None:
    """ShardError unless keys are unique and members follow each other inside the tar."""
    end = 0
    for entry in samples:
        for extension, (offset, length) in entry.members.items():
            if offset < end or offset + length > tar_bytes:
                raise ShardError(
                    f"sample {entry.key}: got {extension} at bytes {offset} to {offset + length}, "
                    f"expected it after byte {end} in a tar of {tar_bytes} bytes"
                )
            end = offset + length
    if len({entry.key for entry in samples}) != len(samples):
        raise ShardError("samples: got a key twice, expected every key once")


def _expect(what: str, got: object, expected: object) -> None:
    if got != expected:
        raise ShardError(f"{what}: got {got!r}, expected {expected!r}")


def _natural(value: object, what: str) -> int:
    if type(value) is not int or value < 0:
        raise ShardError(f"{what}: got {value!r}, expected an int >= 0")
    return value


def _texts(raw: dict[str, Any]) -> dict[str, str]:
    if not all(isinstance(value, str) for value in raw.values()):
        raise ShardError(f"failures, notes: got {raw}, expected a key and a reason")
    return raw


def manifest_sha256(tar: Path) -> str:
    """SHA-256, in hex, of the manifest file of `tar`; it stands for the shard's whole content."""
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
