"""Reads samples out of a tar by the offsets of its manifest, checked by CRC-32.

Reached by the stages that go through shards in order (iterate) and by sharding.stream, which jumps
(OpenTar, read_entry). The tar's own headers are never asked.
"""
from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from sharding.manifest import Manifest, SampleEntry, read_manifest
from sharding.schema import JSON, OBJECTS, Sample, ShardError, decode_objects


class OpenTar:
    """A tar open for reading by offset, closed with its last reference.

    pread has no file position to share, so threads and forked processes may use one together.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ShardError(
                f"{path}: got {error.strerror}, expected a tar to read; bring it back or run the "
                "stage that writes it again"
            ) from error

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    @property
    def num_bytes(self) -> int:
        """The size of the file now."""
        return os.fstat(self._descriptor).st_size

    def check_size(self, manifest: Manifest) -> None:
        """ShardError unless the tar has the size that its manifest says."""
        if self.num_bytes != manifest.tar_bytes:
            raise ShardError(
                f"{self.path}: got {self.num_bytes} bytes, expected the {manifest.tar_bytes} of "
                "its manifest: cut short or replaced; run the stage that writes it again"
            )

    def read(self, offset: int, num_bytes: int) -> bytes:
        """Exactly `num_bytes` from `offset`; ShardError if the file ends before or cannot be read.
        """
        pieces: list[bytes] = []
        missing = num_bytes
        while missing:
            try:
                piece = os.pread(self._descriptor, missing, offset + num_bytes - missing)
            except OSError as error:
                raise ShardError(f"{self.path}: got {error.strerror} at byte {offset}") from error
            if not piece:
                raise ShardError(
                    f"{self.path}: got its end {missing} bytes short of byte {offset + num_bytes}:"
                    " cut short; run the stage that writes it again"
                )
            pieces.append(piece)
            missing -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_sample(tar: Path, entry: SampleEntry, *, check: bool = True) -> Sample:
    """One sample of `tar`; ShardError naming tar and key if it is damaged.

    `check=False` leaves out the CRC-32, for readers that have verified the shard just before.
    """
    return read_entry(OpenTar(tar), entry, check=check)


def iterate(tar: Path) -> Iterator[Sample]:
    """All samples of a finished shard in their order, checked; ShardError as read_sample."""
    manifest = read_manifest(tar)
    source = OpenTar(tar)
    source.check_size(manifest)
    for entry in manifest.samples:
        yield read_entry(source, entry)


def read_entry(source: OpenTar, entry: SampleEntry, *, check: bool = True) -> Sample:
    """One sample of an open tar; ShardError naming tar and key if it is damaged."""
    try:
        payloads = read_payloads(source, entry)
        if check:
            check_crc32(payloads, entry)
        return _sample(payloads, entry)
    except ShardError as error:
        raise ShardError(f"{source.path}: sample {entry.key}: {error}") from error


def read_payloads(source: OpenTar, entry: SampleEntry) -> dict[str, bytes]:
    """{extension: payload} of a sample, in the order of the tar.

    Its members lie side by side, so one read fetches them all, the headers between them too.
    """
    places = list(entry.members.values())
    first = places[0][0]
    span = source.read(first, sum(places[-1]) - first)
    return {
        extension: span[offset - first:offset - first + length]
        for extension, (offset, length) in entry.members.items()
    }


def check_crc32(payloads: dict[str, bytes], entry: SampleEntry) -> None:
    """ShardError unless the payloads, concatenated, have the CRC-32 of the manifest."""
    crc32 = 0
    for payload in payloads.values():
        crc32 = zlib.crc32(payload, crc32)
    if crc32 != entry.crc32:
        raise ShardError(
            f"got CRC-32 {crc32:08x}, expected {entry.crc32:08x} of the manifest: the bytes have "
            "changed; run the stage that writes the shard again"
        )


def _sample(payloads: dict[str, bytes], entry: SampleEntry) -> Sample:
    try:
        info = json.loads(payloads[JSON])
    except (ValueError, RecursionError) as error:
        raise ShardError(f"json: got {error}, expected an object") from error
    if not isinstance(info, dict):
        raise ShardError(f"json: got {type(info).__name__}, expected an object")
    objects = decode_objects(payloads[OBJECTS]) if OBJECTS in payloads else None
    return Sample(
        key=entry.key,
        image=payloads[entry.extension],
        extension=entry.extension,
        info=info,
        objects=objects,
    )
