"""Tests of sharding.writing.shard_writer: bytes, places, refusals, and writers that meet or die."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import tarfile
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from killed_calls import die_before

from sharding.format.manifest import is_done, manifest_path, manifest_sha256, read_manifest
from sharding.format.schema import EncodedSample, Failure, Note, Sample, ShardError, encode_objects
from sharding.reading.sample_reader import OpenTar, iterate, read_sample
from sharding.tools.verify import verify_shard
from sharding.writing.atomic import remove_stale
from sharding.writing.shard_writer import _header, write_shard

MakeSample = Callable[..., Sample]
NAME = "train-000000.tar"


def _bytes(tar: Path) -> tuple[bytes, bytes]:
    return tar.read_bytes(), manifest_path(tar).read_bytes()


def test_bytes_depend_on_the_samples_alone(
    tmp_path: Path, make_sample: MakeSample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: written on another day, with the json's keys in another order, the same bytes."""
    samples = [make_sample(index) for index in range(6)]
    write_shard(tmp_path / "a" / NAME, samples, fingerprint={"a": "1", "b": "2"})
    monkeypatch.setattr(time, "time", lambda: 4e9)
    turned = [replace(s, info=dict(reversed(s.info.items()))) for s in samples]
    write_shard(tmp_path / "b" / NAME, turned, fingerprint={"b": "2", "a": "1"})
    assert _bytes(tmp_path / "a" / NAME) == _bytes(tmp_path / "b" / NAME)


def test_headers_name_nobody_and_places_are_true(tmp_path: Path, make_sample: MakeSample) -> None:
    """Oracle: tarfile's reading of the tar; zlib and hashlib over what it found."""
    tar = tmp_path / NAME
    samples = [make_sample(index) for index in range(6)]
    manifest = write_shard(tar, samples, fingerprint={})
    with tarfile.open(tar, "r:") as source:
        members = source.getmembers()
        payloads = [source.extractfile(member).read() for member in members]  # type: ignore
    for member in members:
        assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
        assert (member.uname, member.gname, member.type) == ("", "", tarfile.REGTYPE)
    found = [(member.name, member.offset_data, member.size) for member in members]
    said = [
        (f"{entry.key}.{extension}", *place)
        for entry in manifest.samples
        for extension, place in entry.members.items()
    ]
    assert found == said
    assert [name for name, _, _ in found[:6]] == [
        "picture-00000.png",
        "picture-00000.json",
        "picture-00000.objects.npy",
        "picture-00001.jpg",
        "picture-00001.json",
        "picture-00001.objects.npy",
    ]
    for index, entry in enumerate(manifest.samples):
        assert entry.crc32 == zlib.crc32(b"".join(payloads[3 * index : 3 * index + 3]))
        assert (entry.width, entry.height) == tuple(
            json.loads(payloads[3 * index + 1])[side] for side in ("width", "height")
        )
    assert payloads[1] == ('{"captions":["número 0"],"height":48,"image_id":0,"width":64}'.encode())
    assert manifest.sha256 == hashlib.sha256(tar.read_bytes()).hexdigest()
    assert manifest.tar_bytes == tar.stat().st_size


def test_samples_come_back_as_they_went_in(tmp_path: Path, make_sample: MakeSample) -> None:
    """Oracle: the samples written, in order; failures and notes in the manifest, counted."""
    tar = tmp_path / NAME
    samples = [make_sample(index, objects=index != 2) for index in range(5)]
    failed, note = Failure(key="no key/", reason="1 px"), Note(key="picture-00001", reason="ü")
    written = write_shard(tar, [failed, *samples, note], fingerprint={"a": "1"})
    manifest = read_manifest(tar)
    assert manifest == written
    assert (manifest.num_input, manifest.num_ok, manifest.num_failed) == (6, 5, 1)
    assert manifest.failures == (failed,) and manifest.notes == (note,)
    for sample, got in zip(samples, iterate(tar), strict=True):
        assert (got.key, got.image, got.extension, got.info) == (
            sample.key,
            sample.image,
            sample.extension,
            sample.info,
        )
        np.testing.assert_array_equal(got.objects, sample.objects)
    assert read_sample(tar, manifest.samples[3]).image == samples[3].image
    assert is_done(tar, {"a": "1"})
    assert not is_done(tar, {"a": "2"}) and not is_done(tar, {})
    assert len(manifest_sha256(tar)) == 64


def test_a_shard_without_samples_is_a_tar(tmp_path: Path) -> None:
    """Oracle: tarfile reads it as empty; the manifest is done and counts the failure."""
    manifest = write_shard(tmp_path / NAME, [Failure(key="a", reason="b")], fingerprint={})
    with tarfile.open(tmp_path / NAME, "r:") as source:
        assert source.getmembers() == []
    assert (manifest.num_input, manifest.num_ok) == (1, 0)
    assert is_done(tmp_path / NAME, {}) and list(iterate(tmp_path / NAME)) == []


def test_a_failed_write_leaves_the_older_shard(tmp_path: Path, make_sample: MakeSample) -> None:
    """Oracle: the folder's listing and the older bytes, for three ways to fail."""
    tar = tmp_path / NAME
    write_shard(tar, [make_sample(0)], fingerprint={"old": "1"})
    before = _bytes(tar)

    def failing() -> Iterator[Sample]:
        yield make_sample(1)
        raise RuntimeError("teacher died")

    twice = [make_sample(1), make_sample(2), make_sample(1)]
    odd = replace(make_sample(3), info={**make_sample(3).info, "odd": float("nan")})
    surrogate = replace(make_sample(3), info={**make_sample(3).info, "captions": ["\ud800"]})
    for results, error, message in (
        (failing(), RuntimeError, "teacher died"),
        (twice, ShardError, "picture-00001.*twice"),
        ([odd], ShardError, "picture-00003"),
        ([surrogate], ShardError, "picture-00003"),
    ):
        with pytest.raises(error, match=message):
            write_shard(tar, results, fingerprint={})
        assert sorted(os.listdir(tmp_path)) == [NAME, NAME + ".json"]
        assert _bytes(tar) == before


def test_no_shard_costs_a_listing_of_its_folder(
    tmp_path: Path, make_sample: MakeSample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a listing for each shard, time grows with the square of their number. Oracle: none of
    Python's four ways to list a folder is called."""

    def listed(*_: object) -> None:
        raise AssertionError("the folder was listed")

    with monkeypatch.context() as patched:
        for name in ("listdir", "scandir"):
            patched.setattr(os, name, listed)
        for name in ("iterdir", "glob"):
            patched.setattr(Path, name, listed)
        write_shard(tmp_path / NAME, [make_sample(1)], fingerprint={})
    assert sorted(os.listdir(tmp_path)) == [NAME, NAME + ".json"]


def test_the_shard_is_never_whole_in_memory(tmp_path: Path, make_sample: MakeSample) -> None:
    """Oracle: tracemalloc's peak while 40 MB go through stays under 8 MB."""
    big = (replace(make_sample(index), image=bytes([index]) * 1_000_000) for index in range(40))
    tracemalloc.start()
    try:
        write_shard(tmp_path / NAME, big, fingerprint={})
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
        tracemalloc.reset_peak()
        assert sum(len(sample.image) for sample in iterate(tmp_path / NAME)) == 40_000_000
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def test_two_writers_at_once_leave_the_same_shard(tmp_path: Path, make_sample: MakeSample) -> None:
    """Oracle: the bytes of a lone writer, whichever of two that run in step comes first."""
    samples = [make_sample(index) for index in range(4)]
    write_shard(tmp_path / "lone" / NAME, samples, fingerprint={})
    barrier = threading.Barrier(2, timeout=30)

    def in_step() -> Iterator[Sample]:
        for sample in samples:
            barrier.wait()
            yield sample

    def write() -> None:
        write_shard(tmp_path / "both" / NAME, in_step(), fingerprint={})

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert _bytes(tmp_path / "both" / NAME) == _bytes(tmp_path / "lone" / NAME)
    assert sorted(os.listdir(tmp_path / "both")) == [NAME, NAME + ".json"]


def _write(tar: Path, moment: str, fingerprint: str) -> None:
    """A writer that kills itself: in the middle of the samples where `moment` is "sample", else
    before the n-th call that changes the disk for good, or never."""
    if moment.isdigit():
        die_before(int(moment), ("fsync", "replace", "unlink"))

    def samples() -> Iterator[Sample]:
        for index in range(8):
            if index == 5 and moment == "sample":
                os.kill(os.getpid(), signal.SIGKILL)
            info = {"captions": [fingerprint], "width": 4, "height": 3}
            yield Sample(key=f"k{index}", image=bytes(300_000), extension="jpg", info=info)

    write_shard(tar, samples(), fingerprint={"is": fingerprint})


def _write_until(tar: Path, moment: str, fingerprint: str) -> bool:
    """Whether `_write`, in a process of its own, got to its end."""
    fork = multiprocessing.get_context("fork")
    writer = fork.Process(target=_write, args=(tar, moment, fingerprint))
    writer.start()
    writer.join()
    assert writer.exitcode in (0, -signal.SIGKILL)
    return writer.exitcode == 0


@pytest.mark.parametrize("older", [False, True])
def test_a_killed_writer_leaves_nothing_that_counts(tmp_path: Path, older: bool) -> None:
    """Oracle: an undisturbed run's bytes; a shard that calls itself done has all its bytes.

    The writer is killed in the middle of its samples, then before each call that changes the disk
    for good (the next moment is tried until it gets through), with and without an older, different
    shard of the same size in its place. "old" and "new" make tars of the same size on purpose.
    """
    lone = tmp_path / "lone" / NAME
    assert _write_until(lone, "never", "new")
    assert _write_until(tmp_path / "old" / NAME, "never", "old")
    num_done = 0
    for moment in ["sample", *map(str, range(1, 20))]:
        tar = tmp_path / moment / NAME
        if older:
            shutil.copytree(tmp_path / "old", tar.parent)
        finished = _write_until(tar, moment, "new")
        done = [name for name in ("old", "new") if is_done(tar, {"is": name})]
        num_done += done == ["new"]
        if done:
            assert verify_shard(tar, full=True) == []
        if moment == "sample":
            assert done == (["old"] if older else [])
            assert tar.exists() == older
            assert any(name.endswith(".tmp") for name in os.listdir(tar.parent))
        assert _write_until(tar, "never", "new")
        assert _bytes(tar) == _bytes(lone)
        remove_stale(tar.parent, {NAME, NAME + ".json"})
        assert sorted(os.listdir(tar.parent)) == [NAME, NAME + ".json"]
        if finished:
            break
    assert finished and int(moment) > 5 and num_done >= 2


@pytest.mark.parametrize("name", ["a.jpg", "picture-00001.objects.npy", "k" * 80 + ".objects.npy"])
@pytest.mark.parametrize("num_bytes", [0, 1, 511, 123_456_789, (8 << 30) - 1])
def test_headers_are_those_of_tarfile(name: str, num_bytes: int) -> None:
    """Oracle: tarfile's own spelling, byte for byte."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = num_bytes, 0o644
    assert _header(name, num_bytes) == info.tobuf(format=tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(("name", "num_bytes"), [("a.jpg", 8 << 30), ("k" * 101, 1)])
def test_what_no_header_can_hold_is_refused(name: str, num_bytes: int) -> None:
    """Oracle: the widths of ustar's fields, 100 characters and 11 octal digits."""
    with pytest.raises(ShardError, match="no room"):
        _header(name, num_bytes)


@pytest.mark.parametrize("index", range(4))
def test_objects_are_spelled_as_numpy_saves_them(make_sample: MakeSample, index: int) -> None:
    """Oracle: numpy.save, byte for byte, for arrays of 0 to 3 rows; of every other row as well."""
    objects = make_sample(index).objects
    assert objects is not None
    for array in (objects, objects[::2]):
        out = io.BytesIO()
        np.save(out, array, allow_pickle=False)
        assert encode_objects(array) == out.getvalue()


def test_packed_samples_go_in_as_they_are(tmp_path: Path, make_sample: MakeSample) -> None:
    """Oracle: the shard that was written from the samples themselves."""
    samples = [make_sample(index) for index in range(6)]
    first = write_shard(tmp_path / "a" / NAME, samples, fingerprint={})
    source = OpenTar(tmp_path / "a" / NAME)
    packed = [
        EncodedSample(
            key=entry.key,
            width=entry.width,
            height=entry.height,
            payloads={name: source.read(*place) for name, place in entry.members.items()},
        )
        for entry in first.samples
    ]
    write_shard(tmp_path / "b" / NAME, packed, fingerprint={})
    assert _bytes(tmp_path / "a" / NAME) == _bytes(tmp_path / "b" / NAME)


class _Lost(Exception):
    """The shard is another writer's."""


def test_ownership_is_checked_after_the_sync_and_before_each_rename(
    tmp_path: Path, make_sample: MakeSample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: both files were synced before; the first check finds the old shard whole; a loss at
    the second one leaves no manifest beside a tar that is not its own."""
    tar, old = tmp_path / NAME, [make_sample(0)]
    write_shard(tar, old, fingerprint={"is": "old"})
    before = _bytes(tar)
    synced, fsync = list[int](), os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(file) or fsync(file))
    for lost_at in (1, 2):
        calls = list[bool]()
        synced.clear()

        def check_owner() -> None:
            assert len(synced) >= 2, "tar and manifest are on disk by now"
            calls.append(is_done(tar, {"is": "old"}))
            if len(calls) == lost_at:
                raise _Lost

        with pytest.raises(_Lost):
            new = [make_sample(1)]
            write_shard(tar, new, fingerprint={"is": "new"}, check_owner=check_owner)
        if lost_at == 1:
            assert calls == [True] and _bytes(tar) == before
        else:
            assert calls == [True, False] and not manifest_path(tar).exists()


def test_a_shard_that_another_finished_meanwhile_is_not_replaced(
    tmp_path: Path, make_sample: MakeSample
) -> None:
    """Two writers of the same fingerprint whose bytes differ. Oracle: the first one's files."""
    tar = tmp_path / NAME
    first = [make_sample(0)]

    def second() -> Iterator[Sample]:
        write_shard(tar, first, fingerprint={"is": "same"})
        yield make_sample(1)

    manifest = write_shard(tar, second(), fingerprint={"is": "same"})
    assert [entry.key for entry in manifest.samples] == [first[0].key]
    assert verify_shard(tar, full=True) == []
    # A shard that was there before is written again when somebody asks for it.
    again = write_shard(tar, [make_sample(1)], fingerprint={"is": "same"})
    assert again.samples[0].key != first[0].key and verify_shard(tar, full=True) == []


def test_two_writers_that_both_think_they_own_it_never_mix_tar_and_manifest(
    tmp_path: Path, make_sample: MakeSample
) -> None:
    """Writer A stops between its last check and its tar's rename, or between that and its
    manifest's; B writes all meanwhile. Oracle: the shard is done and sound, or not done."""
    for stop_at in (1, 2):
        tar = tmp_path / str(stop_at) / NAME
        calls = list[int]()

        def check_owner() -> None:
            calls.append(1)
            if len(calls) == stop_at:
                write_shard(tar, [make_sample(1)], fingerprint={"is": "b"})

        with contextlib.suppress(FileNotFoundError):
            write_shard(tar, [make_sample(0)], fingerprint={"is": "a"}, check_owner=check_owner)
        assert not manifest_path(tar).exists() or verify_shard(tar, full=True) == []


def test_a_full_disk_leaves_the_older_shard(
    tmp_path: Path, make_sample: MakeSample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsync says so, of either file. Oracle: the older shard's bytes, and it is done."""
    tar = tmp_path / NAME
    write_shard(tar, [make_sample(0)], fingerprint={"is": "old"})
    before, real = _bytes(tar), os.fsync
    for failing in (1, 2):
        calls = list[int]()

        def full(descriptor: int) -> None:
            calls.append(descriptor)
            if len(calls) == failing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_shard(tar, [make_sample(1)], fingerprint={"is": "new"})
        monkeypatch.setattr(os, "fsync", real)
        assert _bytes(tar) == before and is_done(tar, {"is": "old"})
        assert sorted(os.listdir(tmp_path)) == [NAME, NAME + ".json"]
