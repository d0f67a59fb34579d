"""Writes one shard: a plain tar that stock webdataset reads, and its manifest, last.

The bytes depend on the samples alone: fixed times, owners and modes, members in a fixed order,
canonical json. So a shard that is written again, or by two workers at once, ends as the same file.
The order of events, each safe to be killed in:

    both temporary files filled and fsynced -> ownership checked -> an older, different manifest
    removed -> tar renamed -> ownership checked -> manifest renamed -> both are still in place

Nothing that can fail for lack of disk space comes after the first removal. Two writers of one shard
whose bytes differ never leave the tar of one beside the manifest of the other: each looks, after
its last rename, whether tar and manifest are its own, and removes its manifest if the tar is not.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from zlib_ng import zlib_ng

from sharding.format.manifest import (
    Manifest,
    SampleEntry,
    is_done,
    manifest_bytes,
    manifest_path,
    read_manifest,
)
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
    NewFile,
    TempFileRemoved,
    canonical_json,
    naming,
    sha256_file,
    sync_folder,
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
    tar: str | Path,
    results: Iterable[Sample | EncodedSample | Failure | Note],
    *,
    fingerprint: Mapping[str, str],
    check_owner: Callable[[], None] = lambda: None,
) -> Manifest:
    """Writes `tar` and its manifest from what a stage made of its inputs, in the given order.

    One sample is in memory at a time. If `results` raises, or a sample breaks the schema or
    repeats a key of the shard (ShardError), nothing is left behind and an older shard of the name
    stays untouched.

    check_owner: raises where the shard is another writer's by now; called before each rename. A
    shard of this fingerprint that another writer finished meanwhile stays; its manifest is
    returned.
    """
    tar = Path(tar)
    version = _version(manifest_path(tar))
    samples: dict[str, SampleEntry] = {}
    failures: list[Failure] = []
    notes: list[Note] = []
    with ThreadPoolExecutor(1) as hasher, NewFile(tar) as new_tar:
        stream = _TarStream(new_tar, hasher)
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
                encoded = result if isinstance(result, EncodedSample) else _encode(result)
                samples[result.key] = _write_encoded(stream, encoded)
        stream.write([END_OF_TAR])
        manifest = Manifest(
            tar=tar.name,
            tar_bytes=stream.position,
            sha256=stream.close(),
            samples=tuple(samples.values()),
            failures=tuple(failures),
            notes=tuple(notes),
            fingerprint=dict(fingerprint),
        )
        with NewFile(manifest_path(tar)) as new_manifest:
            return _commit(new_tar, new_manifest, manifest, version, check_owner)


def _commit(
    new_tar: NewFile,
    new_manifest: NewFile,
    manifest: Manifest,
    version: tuple[int, int] | None,
    check_owner: Callable[[], None],
) -> Manifest:
    """Give both files their names; the manifest that is beside the tar afterwards.

    version: of the manifest that was there when writing began.
    """
    tar, data = new_tar.path, manifest_bytes(manifest)
    new_manifest.out.write(data)
    new_tar.sync()
    new_manifest.sync()
    check_owner()
    if _version(new_manifest.path) != version and is_done(tar, manifest.fingerprint):
        return read_manifest(tar)
    _remove_other_manifest(tar, data)
    new_tar.rename()
    try:
        check_owner()
        new_manifest.rename()
    except BaseException:
        # The tar replaced another writer's, whose manifest may have come since the look above.
        if new_tar.is_in_place():
            _remove_other_manifest(tar, data)
        raise
    if not new_tar.is_in_place() and new_manifest.is_in_place():
        if sha256_file(tar) != manifest.sha256:
            _remove(new_manifest.path)
            raise TempFileRemoved(
                f"{tar}: got the tar of another writer beside the manifest of this one, expected "
                "one writer; the manifest was removed, and the shard is written again"
            )
    return manifest


def _version(path: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced; None where there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


class _TarStream:
    """The tar being written: its position and the SHA-256 of all before.

    Hashing takes longer than all else and leaves Python's lock free, so it has a thread of its
    own. A few samples at a time go to the disk, past the file's buffer, and to that thread.
    """

    def __init__(self, new_tar: NewFile, hasher: ThreadPoolExecutor) -> None:
        self.position = 0
        self._new_tar, self._hasher = new_tar, hasher
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
        with naming(self._new_tar.path):
            _write_all(self._new_tar.out.fileno(), self._held, self._num_bytes_held)
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


def _write_encoded(stream: _TarStream, encoded: EncodedSample) -> SampleEntry:
    """Appends the members of one sample."""
    check_key(encoded.key)
    pieces: list[bytes] = []
    members = {}
    crc32 = 0
    end = stream.position
    for extension, payload in encoded.payloads.items():
        padding = bytes(-len(payload) % tarfile.BLOCKSIZE)
        pieces += [_header(f"{encoded.key}.{extension}", len(payload)), payload, padding]
        members[extension] = (end + tarfile.BLOCKSIZE, len(payload))
        end += tarfile.BLOCKSIZE + len(payload) + len(padding)
        crc32 = zlib_ng.crc32(payload, crc32)
    stream.write(pieces)
    return SampleEntry(encoded.key, encoded.width, encoded.height, crc32, members)


def _header(name: str, num_bytes: int) -> bytes:
    """A ustar header with constant time, owner and mode.

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
            _remove(manifest_path(tar))


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        sync_folder(path.parent)
