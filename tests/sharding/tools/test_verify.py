"""Tests of sharding.tools.verify: a table of damages, each found, with the key where it has one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sharding.format.manifest import manifest_path, manifest_sha256, read_manifest
from sharding.format.schema import Sample, ShardError
from sharding.reading.sample_reader import OpenTar, iterate
from sharding.tools.verify import verify_paths, verify_shard
from sharding.writing.shard_writer import write_shard

MakeFolder = Callable[..., Path]
NAME = "train-000001.tar"


def _flip(tar: Path, at: int) -> None:
    data = bytearray(tar.read_bytes())
    data[at] ^= 1
    tar.write_bytes(data)


def _place(tar: Path, extension: str) -> int:
    """Where a member of the third sample begins."""
    return read_manifest(tar).samples[2].members[extension][0]


def _rewrite_manifest(tar: Path, change: Callable[[dict], object]) -> None:
    raw = json.loads(manifest_path(tar).read_bytes())
    change(raw)
    manifest_path(tar).write_text(json.dumps(raw))


def _swallow_a_header(tar: Path) -> None:
    """Header destroyed and the tar's SHA-256 brought into line: only the header itself is left."""
    _flip(tar, _place(tar, "json") - 512)
    sha256 = hashlib.sha256(tar.read_bytes()).hexdigest()
    _rewrite_manifest(tar, lambda raw: raw.update(sha256=sha256))


def _append(tar: Path) -> None:
    with open(tar, "ab") as out:
        out.write(bytes(511) + b"x")
    sha256 = hashlib.sha256(tar.read_bytes()).hexdigest()
    _rewrite_manifest(tar, lambda raw: raw.update(sha256=sha256, bytes=raw["bytes"] + 512))


def _rename(tar: Path) -> None:
    """The header of a json replaced by that of another file, and the SHA-256 made to fit."""
    offset, length = read_manifest(tar).samples[2].members["json"]
    info = tarfile.TarInfo("picture-00006.exe")
    info.size = length
    data = tar.read_bytes()
    tar.write_bytes(data[: offset - 512] + info.tobuf() + data[offset:])
    sha256 = hashlib.sha256(tar.read_bytes()).hexdigest()
    _rewrite_manifest(tar, lambda raw: raw.update(sha256=sha256))


def _put(tar: Path, at: int) -> None:
    """A member more at a byte, and a manifest that fits but says nothing of it."""
    info = tarfile.TarInfo("evil.pyd")
    info.size = 512
    member = info.tobuf() + bytes(512)
    data = tar.read_bytes()
    tar.write_bytes(data[:at] + member + data[at:])

    def fit(raw: dict) -> None:
        raw.update(
            bytes=raw["bytes"] + len(member), sha256=hashlib.sha256(tar.read_bytes()).hexdigest()
        )
        for place in (place for one in raw["samples"] for place in one["members"].values()):
            place[0] += len(member) if place[0] >= at else 0

    _rewrite_manifest(tar, fit)


def _put_in(tar: Path) -> None:
    _put(tar, _place(tar, "json") - 512)


def _put_at_end(tar: Path) -> None:
    _put(tar, tar.stat().st_size - 1024)


def _wrong_size_in_manifest(tar: Path) -> None:
    _rewrite_manifest(tar, lambda raw: raw["samples"][2].update(width=5))


THIRD = "picture-00006"  # the third sample of the second shard, a jpg
DAMAGES: dict[str, tuple[Callable[[Path], object], bool, str | None, str]] = {
    # damage: (how, found by a fast look too, key, part of the cause)
    "cut between samples": (
        lambda tar: os.truncate(tar, _place(tar, "jpg") - 512),
        True,
        None,
        "cut short",
    ),
    "cut inside a sample": (
        lambda tar: os.truncate(tar, _place(tar, "objects.npy") - 512),
        True,
        None,
        "cut short",
    ),
    "cut inside data": (
        lambda tar: os.truncate(tar, _place(tar, "jpg") + 9),
        True,
        None,
        "cut short",
    ),
    "tar missing": (lambda tar: tar.unlink(), True, None, "No such file"),
    "tar empty": (lambda tar: os.truncate(tar, 0), True, None, "got 0 bytes"),
    "manifest missing": (lambda tar: manifest_path(tar).unlink(), True, None, "no manifest"),
    "manifest cut": (lambda tar: os.truncate(manifest_path(tar), 300), True, None, "manifest"),
    "manifest of another tar": (
        lambda tar: shutil.copy(
            manifest_path(tar.with_name("train-000000.tar")), manifest_path(tar)
        ),
        True,
        None,
        "train-000000.tar",
    ),
    "tar of another manifest": (
        lambda tar: shutil.copy(tar.with_name("train-000000.tar"), tar),
        True,
        None,
        "replaced",
    ),
    "bit of a picture": (lambda tar: _flip(tar, _place(tar, "jpg") + 7), False, THIRD, "CRC-32"),
    "bit of a json": (lambda tar: _flip(tar, _place(tar, "json") + 7), False, THIRD, "CRC-32"),
    "bit of objects": (
        lambda tar: _flip(tar, _place(tar, "objects.npy") + 200),
        False,
        THIRD,
        "CRC-32",
    ),
    "bit of a header": (lambda tar: _flip(tar, _place(tar, "json") - 512), False, THIRD, "header"),
    "header destroyed, manifest made to fit": (_swallow_a_header, False, THIRD, "header"),
    "header of another file, manifest made to fit": (_rename, False, THIRD, "picture-00006.exe"),
    "bit of padding": (lambda tar: _flip(tar, _place(tar, "json") - 513), False, None, "SHA-256"),
    "bit of the end": (
        lambda tar: _flip(tar, tar.stat().st_size - 1),
        False,
        None,
        "data behind the end mark",
    ),
    "appended, manifest made to fit": (_append, False, None, "data behind the end mark"),
    "member put in, manifest made to fit": (_put_in, False, THIRD, "'evil.pyd' before it"),
    "member put at the end, manifest made to fit": (_put_at_end, False, None, "'evil.pyd' after"),
    "size in pixels wrong": (_wrong_size_in_manifest, False, THIRD, "px in the json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_found(tmp_path: Path, make_folder: MakeFolder, damage: str) -> None:
    """Oracle: the table above; before the damage neither look finds anything."""
    tar = make_folder(tmp_path, [4, 5]) / NAME
    assert verify_shard(tar, full=False) == verify_shard(tar, full=True) == []
    how, fast, key, cause = DAMAGES[damage]
    how(tar)
    assert bool(verify_shard(tar, full=False)) == fast
    faults = verify_shard(tar, full=True)
    assert any(fault.key == key and cause in fault.cause for fault in faults), faults
    assert {fault.tar for fault in faults} == {str(tar)}
    assert {fault.key for fault in faults} <= {key, None}


@pytest.mark.parametrize("damage", [name for name in DAMAGES if DAMAGES[name][1]])
def test_reading_in_order_stops_at_what_a_fast_look_finds(
    tmp_path: Path, make_folder: MakeFolder, damage: str
) -> None:
    """Oracle: iterate raises before its first sample, where webdataset would go on silently."""
    tar = make_folder(tmp_path, [4, 5]) / NAME
    DAMAGES[damage][0](tar)
    with pytest.raises(ShardError, match=NAME):
        next(iterate(tar))


@pytest.mark.parametrize("extension", ["jpg", "json", "objects.npy"])
def test_reading_in_order_names_the_damaged_sample(
    tmp_path: Path, make_folder: MakeFolder, extension: str
) -> None:
    """Oracle: the samples before it come, then the error with tar and key."""
    tar = make_folder(tmp_path, [4, 5]) / NAME
    _flip(tar, _place(tar, extension) + 7)
    samples = iterate(tar)
    assert [next(samples).key for _ in range(2)] == ["picture-00004", "picture-00005"]
    with pytest.raises(ShardError, match=f"{NAME}: sample {THIRD}: got CRC-32"):
        next(samples)


def test_objects_that_break_the_schema_are_found(
    tmp_path: Path, make_sample: Callable[..., Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: a writer without checks stores rising scores; every checksum of the shard is true."""
    sample = make_sample(3)
    assert sample.objects is not None
    sample.objects["score"] = [0.1, 0.2, 0.3]
    monkeypatch.setattr("sharding.format.schema.check_objects", lambda array: None)
    write_shard(tmp_path / NAME, [sample], fingerprint={})
    monkeypatch.undo()
    assert verify_shard(tmp_path / NAME, full=False) == []
    (fault,) = verify_shard(tmp_path / NAME, full=True)
    assert fault.key == sample.key and "falling scores" in fault.cause


def test_folders_are_held_against_their_catalog(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Oracle: one fault after the other in a folder that was sound, each named."""
    folder = make_folder(tmp_path / "objects", [4, 5])
    assert verify_paths([folder, tmp_path, folder / NAME], full=True) == []
    for name in (NAME, NAME + ".json"):
        shutil.copy(folder / name, folder / name.replace("000001", "000009"))
    _rewrite_manifest(folder / "train-000009.tar", lambda raw: raw.update(tar="train-000009.tar"))
    (fault,) = verify_paths([tmp_path], full=True)
    assert fault.tar.endswith("train-000009.tar") and "does not list" in fault.cause
    write_shard(folder / NAME, list(iterate(folder / NAME))[:2], fingerprint={})
    causes = [fault.cause for fault in verify_paths([tmp_path], full=False)]
    assert len(causes) == 2 and "written again" in causes[1]
    (folder / NAME).unlink()
    assert "No such file" in verify_paths([folder], full=False)[1].cause
    (folder / "catalog.json").unlink()
    faults = verify_paths([folder], full=False)
    assert "no catalog" in faults[0].cause and "No such file" in faults[1].cause


def test_a_catalog_that_lies_is_found(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Oracle: kind, counts and size of catalog.json changed, one at a time."""
    folder = make_folder(tmp_path, [4, 5])
    sound = (folder / "catalog.json").read_text()
    for old, new, cause in (
        ('"kind": "objects"', '"kind": "images"', "in a folder of images"),
        (
            '"num_failed": 1,\n   "num_input": 6,\n   "num_ok": 5',
            '"num_failed": 2,\n   "num_input": 7,\n   "num_ok": 5',
            "input, ok, failed",
        ),
    ):
        assert old in sound
        (folder / "catalog.json").write_text(sound.replace(old, new))
        assert cause in verify_paths([folder], full=False)[0].cause


def test_paths_without_shards_are_faults(tmp_path: Path) -> None:
    """Oracle: an empty folder and a missing path must not pass for sound."""
    faults = verify_paths([tmp_path, tmp_path / "missing.tar"], full=False)
    assert [fault.tar for fault in faults] == [str(tmp_path), str(tmp_path / "missing.tar")]


def test_a_tar_of_another_size_tells_what_its_headers_say(
    tmp_path: Path, make_folder: MakeFolder
) -> None:
    """Oracle: cut after the second sample, then another sound tar in its place."""
    folder = make_folder(tmp_path, [4, 5])
    os.truncate(folder / NAME, _place(folder / NAME, "jpg") - 512)
    (fault,) = verify_shard(folder / NAME, full=True)
    assert "after 'picture-00005.objects.npy'" in fault.cause and "cut between" in fault.cause
    shutil.copy(folder / "train-000000.tar", folder / NAME)
    (fault,) = verify_shard(folder / NAME, full=True)
    assert "its headers are intact, 12 members: the tar is not the one" in fault.cause


def test_a_key_in_two_shards_is_found(
    tmp_path: Path, make_folder: MakeFolder, make_sample: Callable[..., Sample]
) -> None:
    """Oracle: two keys of the first shard written into the third, which the catalog then lists."""
    folder = make_folder(tmp_path, [4, 5, 3])
    third = folder / "train-000002.tar"
    write_shard(third, [make_sample(9), make_sample(2), make_sample(1)], fingerprint={})
    raw = json.loads((folder / "catalog.json").read_text())
    raw["shards"][2].update(
        bytes=third.stat().st_size,
        manifest_sha256=manifest_sha256(third),
        num_input=3,
        num_failed=0,
    )
    raw["shapes_sha256"] = None
    (folder / "catalog.json").write_text(json.dumps(raw))
    for full in (False, True):
        for paths in ([folder], sorted(folder.glob("*.tar"))):
            (fault,) = verify_paths(paths, full=full)
            assert (fault.tar, fault.key) == (str(third), "picture-00002")
            assert "got 2 keys" in fault.cause and "train-000000.tar as well" in fault.cause


def test_the_file_of_shapes_is_held_against_the_manifests(
    tmp_path: Path, make_folder: MakeFolder
) -> None:
    """Oracle: a flipped bit, and a file that says another size with a catalog that names it."""
    folder = make_folder(tmp_path, [4, 5])
    shapes = folder / "catalog.shapes.npy"
    _flip(shapes, shapes.stat().st_size - 1)
    (fault,) = verify_paths([folder], full=False)
    assert fault.tar == str(folder) and "got SHA-256" in fault.cause
    raw = json.loads((folder / "catalog.json").read_text())
    raw["shapes_sha256"] = hashlib.sha256(shapes.read_bytes()).hexdigest()
    (folder / "catalog.json").write_text(json.dumps(raw))
    (fault,) = verify_paths([folder], full=False)
    assert fault.tar == str(folder / NAME) and "other sizes of its pictures" in fault.cause
    shapes.unlink()
    (fault,) = verify_paths([folder], full=False)
    assert fault.tar == str(folder) and "No such file" in fault.cause


def test_every_byte_is_read_once_and_every_shard_reported(
    tmp_path: Path, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the bytes that are asked for, but for headers, of 512 bytes each."""
    folder = make_folder(tmp_path, [40, 5, 1])
    asked: list[int] = []
    read = OpenTar.read

    def counting(source: OpenTar, offset: int, num_bytes: int) -> bytes:
        asked.append(num_bytes)
        return read(source, offset, num_bytes)

    monkeypatch.setattr(OpenTar, "read", counting)
    reported: list[tuple[int, int]] = []
    assert verify_paths([folder], full=True, on_shard=lambda *done: reported.append(done)) == []
    in_all = sum(tar.stat().st_size for tar in folder.glob("*.tar"))
    # The zeros at the end of a tar are looked at once more.
    assert in_all <= sum(size for size in asked if size != 512) <= in_all + 3 * 1024
    assert reported == [(1, 3), (2, 3), (3, 3)]
