"""Reads samples of a tar by the offsets of its manifest, and checks their CRC-32.

The tar's own headers are not read.
"""

from __future__ import annotations

import functools
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from zlib_ng import zlib_ng

from sharding.format.manifest import TEXT, Manifest, SampleEntry, read_manifest
from sharding.format.schema import JSON, OBJECTS, Sample, ShardError, decode_objects

# A sample's members by extension: views (uint8) of what was read, or bytes.
Members = Mapping[str, np.ndarray | bytes]

# What the json of every sample of ours has; where one is missing, others wrote it.
_OUR_FIELDS = {"captions", "width", "height"}
# Magic, version and the header's length, a short, come before the header of a .npy file.
_NPY_PREFIX_BYTES = 10


class OpenTar:
    """A tar open for reading by offset, closed with its last reference.

    pread has no file position to share, so threads and forked processes may use one together.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Without waiting: a pipe that somebody named so would wait for a writer.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ShardError(
                f"{path}: got {error.strerror}, expected a tar to read; restore it or run the "
                "stage that writes it again"
            ) from error
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise ShardError(f"{path}: got no regular file, expected a tar to read")

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
        """Exactly `num_bytes` from `offset`; ShardError if the file ends before or cannot be
        read."""
        try:
            data = os.pread(self._descriptor, num_bytes, offset)
        except OSError as error:
            raise ShardError(f"{self.path}: got {error.strerror} at byte {offset}") from error
        if len(data) == num_bytes:
            return data
        rest = np.empty(num_bytes - len(data), np.uint8)
        self.read_into(rest, offset + len(data))
        return data + rest.tobytes()

    def read_into(self, data: np.ndarray, offset: int) -> None:
        """Fills `data` (uint8) with the bytes from `offset` on; ShardError as read."""
        rest = data.data
        while rest:
            at = offset + len(data) - len(rest)
            try:
                num_read = os.preadv(self._descriptor, [rest], at)
            except OSError as error:
                raise ShardError(f"{self.path}: got {error.strerror} at byte {at}") from error
            if not num_read:
                raise ShardError(
                    f"{self.path}: got its end {len(rest)} bytes short of byte "
                    f"{offset + len(data)}: cut short; run the stage that writes it again"
                )
            rest = rest[num_read:]


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
        members = read_members(source, entry)
        if check:
            check_crc32(members, entry)
        return make_sample(members, entry)
    except ShardError as error:
        raise ShardError(f"{source.path}: sample {entry.key}: {error}") from error


def read_info(source: OpenTar, entry: SampleEntry) -> dict[str, Any]:
    """The info of a sample, as read_entry gives it, without reading its picture.

    So it is not checked by CRC-32, which is over all members; ShardError where it is no json.
    """
    texts = {name: place for name, place in entry.members.items() if name in (JSON, TEXT)}
    try:
        return _info({name: source.read(*place) for name, place in texts.items()}, entry)
    except ShardError as error:
        raise ShardError(f"{source.path}: sample {entry.key}: {error}") from error


def read_payloads(source: OpenTar, entry: SampleEntry) -> dict[str, bytes]:
    """{extension: payload} of a sample, in the order of the tar, not checked."""
    members = read_members(source, entry)
    return {extension: as_bytes(payload) for extension, payload in members.items()}


def read_members(source: OpenTar, entry: SampleEntry) -> Members:
    """As read_payloads, the payloads being views (uint8) of one array."""
    offset, num_bytes = span_of(entry)
    span = np.empty(num_bytes, np.uint8)
    source.read_into(span, offset)
    return split_span(span, entry)


def span_of(entry: SampleEntry) -> tuple[int, int]:
    """Offset and length of a sample: its members and the headers between, which lie side by side.

    So one read fetches them all.
    """
    places = list(entry.members.values())
    offset = places[0][0]
    return offset, sum(places[-1]) - offset


def split_span(span: np.ndarray, entry: SampleEntry) -> Members:
    """{extension: payload}, views of the bytes (uint8) that span_of says."""
    first = next(iter(entry.members.values()))[0]
    return {
        extension: span[offset - first : offset - first + length]
        for extension, (offset, length) in entry.members.items()
    }


def split_off_picture(entry: SampleEntry) -> tuple[str, tuple[int, int], SampleEntry] | None:
    """The picture's extension and place and an entry of the members behind it; None unless it is
    the first of several, as in shards of ours.

    Read by itself a picture is bytes at once, and needs not be copied out of a larger array.
    """
    extension = next(iter(entry.members))
    if extension != entry.extension or len(entry.members) == 1:
        return None
    rest = dict(entry.members)
    place = rest.pop(extension)
    return extension, place, SampleEntry(entry.key, entry.width, entry.height, entry.crc32, rest)


def check_crc32(members: Members, entry: SampleEntry) -> None:
    """ShardError unless the payloads, concatenated, have the CRC-32 of the manifest."""
    crc32 = 0
    for payload in members.values():
        crc32 = zlib_ng.crc32(payload, crc32)
    if crc32 != entry.crc32:
        raise ShardError(
            f"got CRC-32 {crc32:08x}, expected {entry.crc32:08x} of the manifest: the bytes have "
            "changed; run the stage that writes the shard again"
        )


def as_bytes(payload: np.ndarray | bytes) -> bytes:
    """A member's payload as bytes, copied only if it has to be."""
    return payload if isinstance(payload, bytes) else payload.tobytes()


def make_sample(members: Members, entry: SampleEntry) -> Sample:
    """The sample that members are of; ShardError if json or objects are not valid.

    What others wrote is brought into our form: captions from the json's "captions" or "caption",
    or from the txt member; size and image_id from the manifest; extension jpeg is jpg.
    The objects array is a view of what it was read into, and may be written to.
    """
    extension = entry.extension
    return Sample(
        key=entry.key,
        image=as_bytes(members[extension]),
        extension="jpg" if extension == "jpeg" else extension,
        info=_info(members, entry),
        objects=_objects(members[OBJECTS]) if OBJECTS in members else None,
    )


def _info(members: Members, entry: SampleEntry) -> dict[str, Any]:
    info = _parse(members[JSON]) if JSON in members else {}
    if not _OUR_FIELDS <= info.keys():
        info |= {
            "captions": _captions(info, members),
            "image_id": entry.key,
            "width": entry.width,
            "height": entry.height,
        }
    return info


def _parse(payload: np.ndarray | bytes) -> dict[str, Any]:
    try:
        info = json.loads(as_bytes(payload))
    except (ValueError, RecursionError) as error:
        raise ShardError(f"json: got {error}, expected an object") from error
    if not isinstance(info, dict):
        raise ShardError(f"json: got {type(info).__name__}, expected an object")
    return info


def _captions(info: dict[str, Any], members: Members) -> list[str]:
    """The captions of a sample that others wrote, none if it has none."""
    captions = info.get("captions", info.get("caption"))
    try:
        if captions is None and TEXT in members:
            captions = as_bytes(members[TEXT]).decode("utf-8")
    except ValueError as error:
        raise ShardError(f"txt: got {error}, expected a caption in UTF-8") from error
    captions = [captions] if isinstance(captions, str) else captions or []
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise ShardError(f"captions: got {captions!r:.80}, expected a list of str")
    return captions


def _objects(payload: np.ndarray | bytes) -> np.ndarray:
    """The objects array over its .npy file, without a copy where that is an array [n] uint8."""
    data = np.frombuffer(bytearray(payload), np.uint8) if isinstance(payload, bytes) else payload
    begin = data[:_NPY_PREFIX_BYTES].tobytes()
    header = data[: _NPY_PREFIX_BYTES + int.from_bytes(begin[8:], "little")].tobytes()
    return data[len(header) :].view(_objects_dtype(header, len(data) - len(header)))


@functools.lru_cache(maxsize=256)
def _objects_dtype(header: bytes, num_bytes: int) -> np.dtype:
    """The dtype of objects that a .npy header says of `num_bytes`; ShardError as decode_objects.

    It takes longer to parse than a picture's objects take to read, and many are the same.
    """
    return decode_objects(header + bytes(num_bytes)).dtype
