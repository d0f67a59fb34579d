"""Tests of sharding.verify: a table of damages, each found, with the key where it has one."""
from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sharding.manifest import manifest_path, read_manifest
from sharding.read import iterate
from sharding.schema import Sample, ShardError
from sharding.verify import verify_paths, verify_shard
from sharding.write import write_shard

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


def _wrong_size_in_manifest(tar: Path) -> None:
    _rewrite_manifest(tar, lambda raw: raw["samples"][2].update(width=5))


THIRD = "picture-00006"  # the third sample of the second shard, a jpg
DAMAGES: dict[str, tuple[Callable[[Path], object], bool, str | None, str]] = {
    # damage: (how, found by a fast look too, key, part of the cause)
    "cut between samples": (lambda tar: os.truncate(tar, _place(tar, "jpg") - 512), True, None,
                            "cut short"),
    "cut inside a sample": (lambda tar: os.truncate(tar, _place(tar, "objects.npy") - 512), True,
                            None, "cut short"),
    "cut inside data": (lambda tar: os.truncate(tar, _place(tar, "jpg") + 9), True, None,
                        "cut short"),
    "tar missing": (lambda tar: tar.unlink(), True, None, "No such file"),
    "tar empty": (lambda tar: os.truncate(tar, 0), True, None, "got 0 bytes"),
    "manifest missing": (lambda tar: manifest_path(tar).unlink(), True, None, "no manifest"),
    "manifest cut": (lambda tar: os.truncate(manifest_path(tar), 300), True, None, "manifest"),
    "manifest of another tar": (
        lambda tar: shutil.copy(manifest_path(tar.with_name("train-000000.tar")),
                                manifest_path(tar)), True, None, "train-000000.tar"),
    "tar of another manifest": (
        lambda tar: shutil.copy(tar.with_name("train-000000.tar"), tar), True, None, "replaced"),
    "bit of a picture": (lambda tar: _flip(tar, _place(tar, "jpg") + 7), False, THIRD, "CRC-32"),
    "bit of a json": (lambda tar: _flip(tar, _place(tar, "json") + 7), False, THIRD, "CRC-32"),
    "bit of objects": (lambda tar: _flip(tar, _place(tar, "objects.npy") + 200), False, THIRD,
                       "CRC-32"),
    "bit of a header": (lambda tar: _flip(tar, _place(tar, "json") - 512), False, THIRD, "header"),
    "header destroyed, manifest made to fit": (_swallow_a_header, False, THIRD, "header"),
    "bit of padding": (lambda tar: _flip(tar, _place(tar, "json") - 513), False, None, "SHA-256"),
    "bit of the end": (lambda tar: _flip(tar, tar.stat().st_size - 1), False, None, "end of the"),
    "appended, manifest made to fit": (_append, False, None, "after byte"),
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
    monkeypatch.setattr("sharding.schema.check_objects", lambda array: None)
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
        ('"num_failed": 1,\n   "num_input": 6,\n   "num_ok": 5',
         '"num_failed": 2,\n   "num_input": 7,\n   "num_ok": 5', "input, ok, failed"),
    ):
        assert old in sound
        (folder / "catalog.json").write_text(sound.replace(old, new))
        assert cause in verify_paths([folder], full=False)[0].cause


def test_paths_without_shards_are_faults(tmp_path: Path) -> None:
    """Oracle: an empty folder and a missing path must not pass for sound."""
    faults = verify_paths([tmp_path, tmp_path / "missing.tar"], full=False)
    assert [fault.tar for fault in faults] == [str(tmp_path), str(tmp_path / "missing.tar")]
