"""Writes one shard: a plain tar that stock webdataset reads, and its manifest, last.

Reached by the stages that make shards. The bytes depend on the samples alone: fixed times, owners
and modes, members in a fixed order, canonical json. So a shard that is written again, or by two
workers at once, ends as the same file. The order of events, each safe to be killed in:

    temporary file, filled and fsynced -> an older, different manifest removed -> rename -> manifest
"""
from __future__ import annotations

import contextlib
import hashlib
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from sharding.atomic import canonical_json, remove_stale, replacing, sync_folder, write_bytes
from sharding.manifest import Manifest, SampleEntry, manifest_bytes, manifest_path
from sharding.schema import (
    JSON, OBJECTS, Failure, Note, Sample, ShardError, check_sample, encode_objects
)

END_OF_TAR = bytes(2 * tarfile.BLOCKSIZE)


def write_shard(
    tar: Path, results: Iterable[Sample | Failure | Note], *, fingerprint: Mapping[str, str]
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
    with replacing(tar) as out:
        tape = _Tape(out)
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
                samples[result.key] = _write_sample(tape, result)
        tape.write(END_OF_TAR)
        manifest = Manifest(
            tar=tar.name,
            tar_bytes=tape.position,
            sha256=tape.digest.hexdigest(),
            samples=tuple(samples.values()),
            failures=tuple(failures),
            notes=tuple(notes),
            fingerprint=dict(fingerprint),
        )
        data = manifest_bytes(manifest)
        _remove_other_manifest(tar, data)
    write_bytes(manifest_path(tar), data)
    return manifest


class _Tape:
    """The tar being written: where it stands and the SHA-256 of all before."""

    def __init__(self, out: BinaryIO) -> None:
        self.out = out
        self.position = 0
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self.out.write(data)
        self.digest.update(data)
        self.position += len(data)


def _write_sample(tape: _Tape, sample: Sample) -> SampleEntry:
    """Appends the members of one sample; ShardError if it breaks the schema."""
    check_sample(sample)
    try:
        payloads = {sample.extension: sample.image, JSON: canonical_json(sample.info)}
        if sample.objects is not None:
            payloads[OBJECTS] = encode_objects(sample.objects)
    # Not only our own check: canonical_json refuses NaN, lone surrogates and unknown types.
    except (ValueError, TypeError, RecursionError) as error:
        raise ShardError(f"sample {sample.key}: {error}") from error
    members = {}
    crc32 = 0
    for extension, payload in payloads.items():
        tape.write(_header(f"{sample.key}.{extension}", len(payload)))
        members[extension] = (tape.position, len(payload))
        tape.write(payload)
        tape.write(bytes(-len(payload) % tarfile.BLOCKSIZE))
        crc32 = zlib.crc32(payload, crc32)
    return SampleEntry(sample.key, sample.info["width"], sample.info["height"], crc32, members)


def _header(name: str, num_bytes: int) -> bytes:
    """A ustar header that says nothing of when, where and by whom: tarfile's other defaults."""
    info = tarfile.TarInfo(name)
    info.size = num_bytes
    info.mode = 0o644
    return info.tobuf(format=tarfile.USTAR_FORMAT)


def _remove_other_manifest(tar: Path, data: bytes) -> None:
    """Removes the manifest of an older, different shard, before its tar is replaced.

    Else a kill between the tar's rename and the manifest's would leave the old manifest beside the
    new tar. An equal manifest stays: its tar is about to be replaced by the same bytes.
    """
    with contextlib.suppress(FileNotFoundError):
        if manifest_path(tar).read_bytes() != data:
            manifest_path(tar).unlink()
            sync_folder(tar.parent)
