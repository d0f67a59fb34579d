"""Tests of sharding.tools.repair: what is sound stays, what is not is put aside, nothing is
lost."""

from __future__ import annotations

import fcntl
import io
import multiprocessing
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from killed_calls import die_before
from PIL import Image

from sharding.format.catalog import read_catalog, write_catalog
from sharding.format.manifest import is_done, manifest_path, read_manifest
from sharding.format.schema import Failure, Sample, ShardError
from sharding.reading.sample_reader import iterate
from sharding.tools.repair import lines, repair
from sharding.tools.verify import verify_paths
from sharding.writing.shard_writer import write_shard

MakeSample = Callable[..., Sample]
NAME = "train-000001.tar"


def _with_picture(sample: Sample) -> Sample:
    """The sample with a picture that is one: a manifest is made again from its header."""
    width, height = sample.info["width"], sample.info["height"]
    noise = np.random.default_rng(sample.info["image_id"]).integers(0, 255, (height, width, 3))
    out = io.BytesIO()
    image = Image.fromarray(noise.astype(np.uint8))
    image.save(out, {"jpg": "JPEG", "png": "PNG"}[sample.extension])
    return replace(sample, image=out.getvalue())


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the undamaged folder is kept once it is made."""
    return tmp_path_factory.mktemp("repair") / "whole"


@pytest.fixture
def folder(tmp_path: Path, whole: Path, make_sample: MakeSample) -> Path:
    """Shards of 4, 5 and 3 samples and a failure each, with a catalog; the last is held out."""
    if not whole.exists():
        splits, first = {}, 0
        for number, (num, split) in enumerate(((4, "train"), (5, "train"), (3, "heldout"))):
            name = f"{split}-{number:06d}.tar"
            samples = [_with_picture(make_sample(first + i)) for i in range(num)]
            failure = Failure(key=f"broken {number}", reason="no picture")
            write_shard(whole / name, [*samples, failure], fingerprint={"stage": "1"})
            splits[name] = split
            first += num
        write_catalog(whole, kind="objects", splits=splits, metadata={"label_names": ["a"]})
    return shutil.copytree(whole, tmp_path / "objects")


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _place(tar: Path, extension: str) -> int:
    """Where a member of the third sample begins."""
    return read_manifest(tar).samples[2].members[extension][0]


def _flip(tar: Path, at: int) -> None:
    data = bytearray(tar.read_bytes())
    data[at] ^= 1
    tar.write_bytes(data)


def _append(tar: Path) -> None:
    with open(tar, "ab") as out:
        out.write(b"x" * 512)


def _rewrite(tar: Path, results: Sequence[Sample | Failure], fingerprint: str) -> None:
    write_shard(tar, results, fingerprint={"stage": fingerprint})


def _older_manifest(tar: Path) -> None:
    """The tar is written again, without its last sample, and then gets the manifest of before."""
    old = manifest_path(tar).read_bytes()
    _rewrite(tar, list(iterate(tar))[:4], "1")
    splits = {s.tar: s.split for s in read_catalog(tar.parent).shards}
    write_catalog(tar.parent, kind="objects", splits=splits, metadata={"label_names": ["a"]})
    manifest_path(tar).write_bytes(old)


def _other_tar(tar: Path) -> None:
    """A sound tar of other samples, and no manifest to say so."""
    _rewrite(tar, list(iterate(tar))[:4], "1")
    manifest_path(tar).unlink()


def _merge(tar: Path) -> None:
    """What is between the json of the third sample and the objects of the fourth is gone."""
    third, fourth = read_manifest(tar).samples[2:4]
    data = tar.read_bytes()
    cut, on = third.members["objects.npy"][0] - 512, fourth.members["objects.npy"][0] - 512
    tar.write_bytes(data[:cut] + data[on:])
    manifest_path(tar).unlink()


DAMAGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    # damage: (how, what becomes of the shard, part of the reason)
    "manifest missing": (lambda tar: manifest_path(tar).unlink(), "rebuilt", "no manifest"),
    "manifest cut": (lambda tar: os.truncate(manifest_path(tar), 300), "rebuilt", "manifest"),
    "manifest of another tar": (
        lambda tar: shutil.copy(
            manifest_path(tar.with_name("train-000000.tar")), manifest_path(tar)
        ),
        "rebuilt",
        "train-000000.tar",
    ),
    "manifest of an older tar": (_older_manifest, "rebuilt", "replaced"),
    "tar of another manifest": (
        lambda tar: shutil.copy(tar.with_name("train-000000.tar"), tar),
        "quarantined",
        "knows the manifest",
    ),
    "other tar, no manifest": (_other_tar, "quarantined", "4 samples"),
    "tar missing": (lambda tar: tar.unlink(), "quarantined", "gone"),
    "tar empty": (lambda tar: os.truncate(tar, 0), "quarantined", "got 0 bytes"),
    "cut between samples": (
        lambda tar: os.truncate(tar, _place(tar, "jpg") - 512),
        "quarantined",
        "cut short",
    ),
    "cut inside a sample": (
        lambda tar: os.truncate(tar, _place(tar, "json") - 512),
        "quarantined",
        "cut short",
    ),
    "cut inside data": (
        lambda tar: os.truncate(tar, _place(tar, "jpg") + 9),
        "quarantined",
        "cut short",
    ),
    "header destroyed": (
        lambda tar: _flip(tar, _place(tar, "json") - 512),
        "quarantined",
        "header",
    ),
    "bit of a picture": (
        lambda tar: _flip(tar, _place(tar, "jpg") + 99),
        "quarantined",
        "picture-00006: ",
    ),
    "bit of a json": (lambda tar: _flip(tar, _place(tar, "json") + 7), "quarantined", "CRC-32"),
    "bit of objects": (
        lambda tar: _flip(tar, _place(tar, "objects.npy") + 300),
        "quarantined",
        "CRC-32",
    ),
    "garbage behind the end": (_append, "quarantined", "behind the end"),
    "merged, no manifest": (_merge, "quarantined", "4 samples"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_repaired(folder: Path, damage: str) -> None:
    """Oracle: the table; afterwards a full look finds nothing, and every byte is still there.

    A dry run before it says the same and changes nothing; a repair after it finds nothing to do.
    """
    whole = read_manifest(folder / NAME)
    how, action, reason = DAMAGES[damage]
    how(folder / NAME)
    before = _files(folder)
    dry = repair(folder, dry_run=True)
    assert _files(folder) == before
    report = repair(folder)
    assert report.findings == dry.findings and report.catalog == dry.catalog
    assert {f.tar: f.action for f in report.findings} == {
        "heldout-000002.tar": "left",
        "train-000000.tar": "left",
        NAME: action,
    }
    (finding,) = [f for f in report.findings if f.tar == NAME]
    assert reason in finding.reason
    assert verify_paths([folder], full=True) == []
    before.pop("catalog.shapes.npy")  # what every catalog makes again
    assert not Counter(before.values()) - Counter(_files(folder).values())
    splits = {shard.tar: shard.split for shard in read_catalog(folder).shards}
    assert splits.pop(NAME, None) == finding.split == ("train" if action == "rebuilt" else None)
    assert splits == {"heldout-000002.tar": "heldout", "train-000000.tar": "train"}
    assert finding.num_lost == (0 if action == "rebuilt" else 5)
    if damage != "manifest of an older tar" and action == "rebuilt":
        assert (
            replace(
                read_manifest(folder / NAME), failures=whole.failures, fingerprint=whole.fingerprint
            )
            == whole
        )
    after = _files(folder)
    again = repair(folder)
    assert all(f.action == "left" for f in again.findings) and not again.catalog
    assert _files(folder) == after


def test_a_sound_folder_is_left_as_it_is(folder: Path) -> None:
    """Oracle: its files, byte for byte."""
    before = _files(folder)
    report = repair(folder)
    assert _files(folder) == before
    assert report.num("left") == 3 and report.catalog == ""
    assert lines(report) == [
        f"{folder}: 3 shards intact, 0 given a new manifest, 0 moved to quarantine/, 0 missing."
    ]


def test_a_rebuilt_manifest_counts_and_is_not_taken_for_the_stages_own(folder: Path) -> None:
    """Oracle: input, ok and failed as in the first catalog; is_done of the stage's fingerprint;
    the stage's shard, written again, is the whole folder's."""
    before, sound = read_catalog(folder), _files(folder)
    results = [*iterate(folder / NAME), *read_manifest(folder / NAME).failures]
    manifest_path(folder / NAME).unlink()
    report = repair(folder)
    for old, new in zip(before.shards, read_catalog(folder).shards, strict=True):
        assert replace(new, manifest_sha256=old.manifest_sha256) == old
    assert [sample.key for sample in iterate(folder / NAME)] == [
        f"picture-{index:05d}" for index in range(4, 9)
    ]
    assert not is_done(folder / NAME, {"stage": "1"})
    assert any("1 failures are known by their number alone" in line for line in lines(report))
    _rewrite(folder / NAME, results, "1")
    splits = {shard.tar: shard.split for shard in before.shards}
    write_catalog(folder, kind=before.kind, splits=splits, metadata=before.metadata)
    after = _files(folder)
    assert {name: after[name] for name in sound} == sound


def test_what_the_catalog_lists_and_nobody_has_is_missing(folder: Path) -> None:
    """Oracle: the catalog without it; the older catalog in quarantine; the lines for people."""
    (folder / NAME).unlink()
    manifest_path(folder / NAME).unlink()
    old = (folder / "catalog.json").read_bytes()
    report = repair(folder)
    assert report.num("missing") == 1
    assert [shard.tar for shard in read_catalog(folder).shards] == [
        "heldout-000002.tar",
        "train-000000.tar",
    ]
    assert (folder / "quarantine" / "catalog.json").read_bytes() == old
    text = "\n".join(lines(report))
    for part in (
        "1 missing",
        f"missing {NAME}: the tar is gone",
        "2 shards with 7 samples",
        "listed 3 with 12",
        "1 shards again",
        "5 samples are out of reach",
    ):
        assert part in text


def test_damaged_twice_both_are_kept(folder: Path) -> None:
    """Oracle: the bytes of both damaged tars and both manifests, under different names."""
    sound = _files(folder)
    damaged = []
    for at in (0, 1):
        for name in (NAME, NAME + ".json", "catalog.json"):
            (folder / name).write_bytes(sound[name])
        for name in sound:
            (folder / name).write_bytes(sound[name])
        _flip(folder / NAME, _place(folder / NAME, "jpg") + 99 + at)
        damaged.append((folder / NAME).read_bytes())
        repair(folder)
    kept = _files(folder / "quarantine")
    assert (kept[NAME], kept[NAME + ".2"]) == tuple(damaged)
    assert kept[NAME + ".json"] == kept[NAME + ".json.2"] == sound[NAME + ".json"]
    assert {NAME + ".reason.txt", NAME + ".2.reason.txt"} < kept.keys()
    assert sum(name.startswith("catalog.json") for name in kept) == 1


def test_a_key_in_two_shards_puts_the_second_aside(folder: Path, make_sample: MakeSample) -> None:
    """Oracle: a listed shard stays before an unlisted one, whatever the names; of three shards in
    a row only the middle one shares with both, and goes alone."""

    def write(name: str, first: int) -> None:
        samples = [_with_picture(make_sample(first + i)) for i in range(3)]
        _rewrite(folder / name, samples, "1")

    write("train-0000.tar", 1)  # shares 1, 2 and 3 with train-000000
    write("train-000007.tar", 20)
    write("train-000008.tar", 22)
    write("train-000009.tar", 24)
    report = repair(folder)
    found = {f.tar: (f.action, f.split) for f in report.findings if f.tar.startswith("train")}
    assert found == {
        "train-0000.tar": ("quarantined", None),
        "train-000000.tar": ("left", "train"),
        NAME: ("left", "train"),
        "train-000007.tar": ("left", "train"),
        "train-000008.tar": ("quarantined", None),
        "train-000009.tar": ("left", "train"),
    }
    reasons = {f.tar: f.reason for f in report.findings}
    assert reasons["train-0000.tar"] == "3 keys of it are in train-000000.tar as well"
    assert reasons["train-000008.tar"] == "1 keys of it are in train-000007.tar as well"
    assert verify_paths([folder], full=True) == []


def test_shards_that_fit_join_the_catalog(folder: Path, make_sample: MakeSample) -> None:
    """Oracle: a shard brought back is listed again; one of another kind or split is not."""
    sound = _files(folder)
    (folder / NAME).unlink()
    repair(folder)
    for name in (NAME, NAME + ".json"):
        (folder / name).write_bytes(sound[name])
    _rewrite(folder / "train-000005.tar", [_with_picture(make_sample(50, objects=False))], "1")
    _rewrite(folder / "other-000005.tar", [_with_picture(make_sample(51))], "1")
    report = repair(folder)
    assert {f.action for f in report.findings} == {"left"}
    assert (folder / "catalog.json").read_bytes() == sound["catalog.json"]
    assert "  not in a catalog: other-000005.tar, train-000005.tar" in lines(report)


@pytest.mark.parametrize("shapes", [None, b"\x93NUMPY"])
def test_the_file_of_shapes_is_made_again(folder: Path, shapes: bytes | None) -> None:
    """Oracle: the sound folder's files, and its catalog besides, kept."""
    sound = _files(folder)
    (folder / "catalog.shapes.npy").unlink()
    if shapes is not None:
        (folder / "catalog.shapes.npy").write_bytes(shapes)
    report = repair(folder)
    assert _files(folder) == {**sound, "quarantine/catalog.json": sound["catalog.json"]}
    assert report.num("left") == 3 and "3 shards with 12 samples" in report.catalog


@pytest.mark.parametrize("catalog", [None, b"{"])
def test_without_a_catalog_none_is_invented(folder: Path, catalog: bytes | None) -> None:
    """Oracle: damaged shards are put aside, one with a flipped bit that its manifest alone shows;
    a manifest is made; no catalog appears."""
    (folder / "catalog.json").unlink()
    if catalog is not None:
        (folder / "catalog.json").write_bytes(catalog)
    manifest_path(folder / "train-000000.tar").unlink()
    _append(folder / NAME)
    heldout = folder / "heldout-000002.tar"
    _flip(heldout, _place(heldout, "jpg") + 2000)
    report = repair(folder)
    assert [f.action for f in report.findings] == ["quarantined", "rebuilt", "quarantined"]
    assert "other bytes" in report.findings[0].reason
    assert (folder / "catalog.json").exists() == (catalog is not None)
    assert any("None was written" in line for line in lines(report))
    assert read_manifest(folder / "train-000000.tar").failures == ()


def test_a_tar_with_a_broken_sample_is_not_sound_in_itself(folder: Path) -> None:
    """Oracle: tars of ours, the last sample without objects or with another picture's start, and
    nothing else to vouch for them."""
    first, second = folder / "train-000000.tar", folder / NAME
    for tar, change in ((first, {"objects": None}), (second, {"image": b"no picture"})):
        *before, last = iterate(tar)
        _rewrite(tar, [*before, replace(last, **change)], "1")
        manifest_path(tar).unlink()
    (folder / "catalog.json").unlink()
    findings = repair(folder).findings
    assert [f.action for f in findings] == ["left", "quarantined", "quarantined"]
    assert "others have none" in findings[1].reason and "1 broken samples" in findings[2].reason


def test_what_is_no_folder_of_shards_is_refused(folder: Path, tmp_path: Path) -> None:
    """Oracle: the messages; a lock that another process would hold."""
    with pytest.raises(ShardError, match="no shards"):
        repair(tmp_path)
    with pytest.raises(ShardError, match="No such file"):
        repair(tmp_path / "missing")
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(ShardError, match="another repair"):
        repair(folder)
    os.close(descriptor)
    repair(folder)


def _repair_until(folder: Path, moment: int) -> None:
    """A repair that kills itself before the `moment`-th call that changes the disk."""
    die_before(moment, ("rename", "replace", "fsync", "mkdir"))
    repair(folder)


def test_a_killed_repair_ends_in_the_same_place(folder: Path, tmp_path: Path) -> None:
    """Oracle: the undisturbed repair's files, byte for byte, whenever it was killed.

    One bit of a picture is flipped, which the tar alone does not show: were its manifest put aside
    before the tar, the next repair would take the tar for sound.
    """
    _flip(folder / NAME, _place(folder / NAME, "jpg") + 2000)
    os.truncate(manifest_path(folder / "train-000000.tar"), 300)
    lone = shutil.copytree(folder, tmp_path / "lone")
    repair(lone)
    fork = multiprocessing.get_context("fork")
    for moment in range(1, 100):
        copy = shutil.copytree(folder, tmp_path / "killed")
        process = fork.Process(target=_repair_until, args=(copy, moment))
        process.start()
        process.join()
        repair(copy)
        assert _files(copy) == _files(lone), moment
        shutil.rmtree(copy)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert moment > 15
