"""Writes one shard: a plain tar that stock webdataset reads, and its manifest, last.

Reached by the stages that make shards. The bytes depend on the samples alone: fixed times, owners
and modes, members in a fixed order, canonical json. So a shard that is written again, or by two
workers at once, ends as the same file. The order of events, each safe to be killed in:

    temporary file, filled and fsynced -> an older, different manifest removed -> rename -> manifest
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from zlib_ng import zlib_ng

from sharding.format.manifest import Manifest, SampleEntry, manifest_bytes, manifest_path
from sharding.format.schema import (
    JSON,
    OBJECTS,
    EncodedSample,
    Failure,
    Note,
    Sample,
    ShardError,
    check_key,
    check_sample,
    encode_objects,
)
from sharding.writing.atomic import (
    canonical_json,
    remove_stale,
    replacing,
    sync_folder,
    write_bytes,
)

AT_ONCE_BYTES = 1 << 20
MOST_PIECES = 500  # of one call, which takes 1024; a sample has at most a dozen
END_OF_TAR = bytes(2 * tarfile.BLOCKSIZE)


def _make_empty_header() -> bytes:
    info = tarfile.TarInfo("")
    info.mode = 0o644
    return info.tobuf(format=tarfile.USTAR_FORMAT)


# tarfile spells a header slower than a sample is written: name, size and checksum are put into this
# one. The checksum counts its own eight bytes as spaces.
_EMPTY_HEADER = _make_empty_header()
_EMPTY_HEADER_SUM = sum(_EMPTY_HEADER[:148]) + 8 * ord(" ") + sum(_EMPTY_HEADER[156:])


def write_shard(
    tar: Path,
    results: Iterable[Sample | EncodedSample | Failure | Note],
    *,
    fingerprint: Mapping[str, str],
) -> Manifest:
    """Writes `tar` and its manifest from what a stage made of its inputs, in the given order.

    One sample is in memory at a time. If `results` raises, or a sample breaks the schema or
    repeats a key of the shard (ShardError), nothing is left behind and an older shard of the name
    stays untouched. Temporary files of killed writers of the same shard are removed.
    """
    remove_stale(tar.parent, {tar.name, manifest_path(tar).name})
    samples: dict[str, SampleEntry] = {}
    failures: list[Failure] = []
    notes: list[Note] = []
    with ThreadPoolExecutor(1) as hasher, replacing(tar) as out:
        tape = _TarStream(out, hasher)
        for result in results:
            if isinstance(result, Failure):
                failures.append(result)
            elif isinstance(result, Note):
                notes.append(result)
            elif result.key in samples:
                raise ShardError(
                    f"{tar}: got key {result.key!r} twice, expected every key once in the data set"
                )
            else:
                packed = result if isinstance(result, EncodedSample) else _encode(result)
                samples[result.key] = _write_encoded(tape, packed)
        tape.write([END_OF_TAR])
        manifest = Manifest(
            tar=tar.name,
            tar_bytes=tape.position,
            sha256=tape.close(),
            samples=tuple(samples.values()),
            failures=tuple(failures),
            notes=tuple(notes),
            fingerprint=dict(fingerprint),
        )
        data = manifest_bytes(manifest)
        _remove_other_manifest(tar, data)
    write_bytes(manifest_path(tar), data)
    return manifest


class _TarStream:
    """The tar being written: where it stands and the SHA-256 of all before.

    Hashing takes longer than all else and leaves Python's lock free, so it has a thread of its
    own. A few samples at a time go to the disk, past the file's buffer, and to that thread.
    """

    def __init__(self, out: BinaryIO, hasher: ThreadPoolExecutor) -> None:
        self.position = 0
        self._out, self._hasher = out, hasher
        self._digest = hashlib.sha256()
        self._held: list[bytes] = []
        self._num_bytes_held = 0
        self._hashing = hasher.submit(self._hash, [])

    def write(self, pieces: list[bytes]) -> None:
        num_bytes = sum(map(len, pieces))
        self._held += pieces
        self._num_bytes_held += num_bytes
        self.position += num_bytes
        if self._num_bytes_held >= AT_ONCE_BYTES or len(self._held) > MOST_PIECES:
            self._flush()

    def close(self) -> str:
        """Hand over what is held; the SHA-256 of all that was written, in hex."""
        self._flush()
        self._hashing.result()
        return self._digest.hexdigest()

    def _flush(self) -> None:
        self._hashing.result()
        self._hashing = self._hasher.submit(self._hash, self._held)
        _write_all(self._out.fileno(), self._held, self._num_bytes_held)
        self._held, self._num_bytes_held = [], 0

    def _hash(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self._digest.update(piece)


def _write_all(descriptor: int, pieces: list[bytes], num_bytes: int) -> None:
    """Writes the pieces, one after the other; OSError when the disk says so."""
    written = os.writev(descriptor, pieces)
    if written < num_bytes:  # a signal, or a disk that is nearly full
        rest = memoryview(b"".join(pieces))[written:]
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def _encode(sample: Sample) -> EncodedSample:
    """The members of a sample, encoded; ShardError if it breaks the schema."""
    check_sample(sample)
    try:
        payloads = {sample.extension: sample.image, JSON: canonical_json(sample.info)}
        if sample.objects is not None:
            payloads[OBJECTS] = encode_objects(sample.objects)
    # Not only our own check: canonical_json refuses NaN, lone surrogates and unknown types.
    except (ValueError, TypeError, RecursionError) as error:
        raise ShardError(f"sample {sample.key}: {error}") from error
    return EncodedSample(
        key=sample.key, width=sample.info["width"], height=sample.info["height"], payloads=payloads
    )


def _write_encoded(tape: _TarStream, packed: EncodedSample) -> SampleEntry:
    """Appends the members of one sample."""
    check_key(packed.key)
    pieces: list[bytes] = []
    members = {}
    crc32 = 0
    end = tape.position
    for extension, payload in packed.payloads.items():
        padding = bytes(-len(payload) % tarfile.BLOCKSIZE)
        pieces += [_header(f"{packed.key}.{extension}", len(payload)), payload, padding]
        members[extension] = (end + tarfile.BLOCKSIZE, len(payload))
        end += tarfile.BLOCKSIZE + len(payload) + len(padding)
        crc32 = zlib_ng.crc32(payload, crc32)
    tape.write(pieces)
    return SampleEntry(packed.key, packed.width, packed.height, crc32, members)


def _header(name: str, num_bytes: int) -> bytes:
    """A ustar header that says nothing of when, where and by whom: tarfile's other defaults.

    ShardError where ustar has no room for the name or the size.
    """
    if len(name) > 100 or num_bytes >= 8 << 30:
        raise ShardError(
            f"member {name}: got {num_bytes} bytes and a name of {len(name)} characters, expected "
            "less than 8 GiB and at most 100: a tar's header has no room for more"
        )
    spelled, size = name.encode("ascii"), b"%011o" % num_bytes
    checksum = _EMPTY_HEADER_SUM + sum(spelled) + sum(size) - 11 * ord("0")
    return b"".join(
        (
            spelled.ljust(100, b"\0"),
            _EMPTY_HEADER[100:124],
            size,
            _EMPTY_HEADER[135:148],
            b"%06o\0 " % checksum,
            _EMPTY_HEADER[156:],
        )
    )


def _remove_other_manifest(tar: Path, data: bytes) -> None:
    """Removes the manifest of an older, different shard, before its tar is replaced.

    Else a kill between the tar's rename and the manifest's would leave the old manifest beside the
    new tar. An equal manifest stays: its tar is about to be replaced by the same bytes.
    """
    with contextlib.suppress(FileNotFoundError):
        if manifest_path(tar).read_bytes() != data:
            manifest_path(tar).unlink()
            sync_folder(tar.parent)
