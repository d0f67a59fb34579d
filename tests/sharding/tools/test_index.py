"""Tests of sharding.tools.index and sharding.format.image_size: what others write reads as what we
write."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from sharding.format.catalog import read_catalog
from sharding.format.image_size import MAX_PIXELS, picture_size
from sharding.format.manifest import (
    Manifest,
    manifest_bytes,
    manifest_path,
    parse_manifest,
    read_manifest,
)
from sharding.format.schema import Sample, ShardError, encode_objects
from sharding.reading.sample_reader import iterate
from sharding.tools import index
from sharding.tools.index import catalog_lines, index_folder, index_tar, split_of_name
from sharding.tools.tar_names import other_tars
from sharding.tools.verify import verify_paths, verify_shard
from sharding.writing.shard_writer import write_shard

NAME = "00000.tar"


def picture(width: int = 40, height: int = 30, form: str = "JPEG", **how: Any) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(out, form, **how)
    return out.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes] | list[tuple[str, bytes]]) -> Path:
    """A tar of these members, as GNU tar or webdataset would write it."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def _meta(key: str, **fields: object) -> bytes:
    """What img2dataset writes as KEY.json."""
    meta = {
        "caption": f"caption {key}",
        "url": "http://x/y.jpg",
        "key": key,
        "status": "success",
        "error_message": None,
        "width": 40,
        "height": 30,
        "original_width": 400,
        **fields,
    }
    return json.dumps(meta, indent=4).encode()


def _img2dataset(path: Path, keys: range) -> Path:
    """A tar by webdataset's own writer, as img2dataset fills it; of every fourth, no picture."""
    with webdataset.TarWriter(str(path)) as sink:
        for number in keys:
            key = f"{number:09d}"
            if number % 4:
                sink.write(
                    {
                        "__key__": key,
                        "jpg": picture(40, 30 + number % 7),
                        "txt": f"caption {key}",
                        "json": _meta(key, height=30 + number % 7),
                    }
                )
            else:
                status = {"status": "failed_to_download", "error_message": "HTTP Error 404"}
                sink.write({"__key__": key, "json": _meta(key, **status)})
    return path


def test_img2dataset_reads_as_webdataset_reads_it(tmp_path: Path) -> None:
    """Oracle: stock webdataset over the same tars: keys, bytes, captions; and Pillow's sizes."""
    tars = [_img2dataset(tmp_path / f"{t:05d}.tar", range(t * 100, t * 100 + 12)) for t in range(2)]
    (tmp_path / "00000.parquet").write_bytes(b"PAR1")
    (tmp_path / "00000_stats.json").write_text("{}")
    catalog = index_folder(tmp_path)
    assert (catalog.kind, catalog.num_ok, read_catalog(tmp_path)) == ("images", 18, catalog)
    assert list(catalog_lines(catalog)) == [
        "2 shards of images: 24 inputs = 18 ok + 6 failed",
        "  train: 18 samples in 2 shards",
        "each NAME.tar.json lists why inputs failed and what was left out",
    ]
    assert verify_paths([tmp_path], full=True) == []
    for tar in tars:
        manifest = read_manifest(tar)
        assert manifest.num_input == 12 == manifest.num_ok + 3 and not manifest.notes
        stock = [one for one in webdataset.WebDataset(str(tar), shardshuffle=False) if "jpg" in one]
        for ours, theirs, entry in zip(iterate(tar), stock, manifest.samples, strict=True):
            assert ours.key == theirs["__key__"] == ours.info["image_id"]
            assert ours.image == theirs["jpg"] and ours.extension == "jpg"
            assert ours.info["captions"] == [theirs["txt"].decode()]
            assert Image.open(io.BytesIO(ours.image)).size == (entry.width, entry.height)
            assert entry.crc32 == zlib.crc32(theirs["jpg"] + theirs["json"] + theirs["txt"])
        assert {failure.reason for failure in manifest.failures} == {
            "no picture: got json; it says 'HTTP Error 404'"
        }
        assert manifest.sha256 == hashlib.sha256(tar.read_bytes()).hexdigest()
        assert manifest.fingerprint == {"index": "index/1", "tar": manifest.sha256}


def test_a_tar_of_ours_gives_its_own_manifest(
    tmp_path: Path, make_folder: Callable[..., Path], make_sample: Callable[..., Sample]
) -> None:
    """Oracle: the samples of the manifest that write_shard wrote, by a writer of real pictures."""
    samples = []
    for number in range(6):
        sample = make_sample(number)
        size = (sample.info["width"], sample.info["height"])
        form = {"jpg": "JPEG", "png": "PNG"}[sample.extension]
        samples.append(replace(sample, image=picture(*size, form)))
    ours = write_shard(tmp_path / NAME, samples, fingerprint={"a": "1"})
    found = index_tar(tmp_path / NAME, fingerprint={"b": "2"})
    assert found == replace(ours, fingerprint={"b": "2"})
    manifest_path(tmp_path / NAME).unlink()
    assert index_folder(tmp_path).kind == "objects"


def _index(path: Path, members: Mapping[str, bytes] | list[tuple[str, bytes]]) -> Manifest:
    tar = write_tar(path / NAME, members)
    manifest = index_tar(tar)
    assert index_tar(tar) == manifest
    assert parse_manifest(manifest_bytes(manifest), tar) == manifest
    manifest_path(tar).write_bytes(manifest_bytes(manifest))
    assert verify_shard(tar, full=True) == []
    return manifest


def _npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


TEXT = b"a caption"
FAILED: dict[str, tuple[list[tuple[str, bytes]], str]] = {
    # what is wrong: (members of the input "a", pattern of the reason)
    "no picture": ([("a.txt", TEXT), ("a.cls", b"1")], "no picture: got txt, cls"),
    "no caption": ([("a.jpg", picture())], "no caption: got jpg"),
    "blank caption": ([("a.jpg", picture()), ("a.txt", b" \n")], "no caption: got blank"),
    "no caption in json": ([("a.jpg", picture()), ("a.json", b"{}")], "no caption"),
    "failed": ([("a.json", b'{"status": "failed_to_resize"}')], "'failed_to_resize'"),
    "twice": ([("a.jpg", picture()), ("a.jpg", picture()), ("a.txt", TEXT)], "duplicate: got jpg"),
    "not a picture": ([("a.jpg", b"<html>"), ("a.txt", TEXT)], "expected the start of a JPEG"),
    "empty picture": ([("a.png", b""), ("a.txt", TEXT)], "expected the start of a JPEG"),
    "picture cut": ([("a.jpg", picture()[:40]), ("a.txt", TEXT)], "picture: got"),
    "gif": ([("a.jpg", picture(form="GIF")), ("a.txt", TEXT)], "b'GIF87a"),
    "json cut": ([("a.jpg", picture()), ("a.json", b'{"caption": ')], "json: got"),
    "json no object": ([("a.jpg", picture()), ("a.json", b'"caption"')], "json: got str"),
    "captions no list": ([("a.jpg", picture()), ("a.json", b'{"captions": {}}')], "aption"),
    "captions of numbers": ([("a.jpg", picture()), ("a.json", b'{"captions": [1]}')], "captions"),
    "half a character": (
        [("a.jpg", picture()), ("a.json", b'{"caption": "\\ud800"}')],
        "captions: got .*surrogates",
    ),
    "txt not UTF-8": ([("a.jpg", picture()), ("a.txt", b"\xff\xfe")], "txt: got"),
    "other size": (
        [("a.jpg", picture()), ("a.json", b'{"captions": ["x"], "width": 41, "height": 30}')],
        "px in the",
    ),
    "objects of floats": (
        [("a.jpg", picture()), ("a.txt", TEXT), ("a.objects.npy", _npy(np.zeros(3)))],
        "objects: got dtype",
    ),
    "key with a space": ([("a b.jpg", picture()), ("a b.txt", TEXT)], "key: got 'a b'"),
    "key of another alphabet": ([("ä.jpg", picture()), ("ä.txt", TEXT)], "key: got"),
    "key too long": ([("a" * 81 + ".jpg", picture()), ("a" * 81 + ".txt", TEXT)], "key: got"),
}


@pytest.mark.parametrize("fault", FAILED)
def test_an_input_that_is_no_sample_is_a_failure(tmp_path: Path, fault: str) -> None:
    """Oracle: the table; the sound inputs around it stay, and input = ok + failed."""
    members, pattern = FAILED[fault]
    before, after = ([(f"{key}.jpg", picture()), (f"{key}.txt", TEXT)] for key in "0z")
    manifest = _index(tmp_path, [*before, *members, *after])
    assert [entry.key for entry in manifest.samples] == ["0", "z"]
    (failure,) = manifest.failures
    assert failure.key in members[0][0]
    assert re.search(pattern, failure.reason), failure.reason
    assert failure.reason.isprintable() and manifest.num_input == 3


def test_members_apart_and_names_with_dots_are_told_with_the_fix(tmp_path: Path) -> None:
    """Oracle: the reasons name tar's option, and webdataset's rule of the first dot."""
    for name in ("apart", "dotted"):
        (tmp_path / name).mkdir()
    apart = [("a.jpg", picture()), ("b.jpg", picture()), ("a.txt", TEXT), ("b.txt", TEXT)]
    reasons = [failure.reason for failure in _index(tmp_path / "apart", apart).failures]
    assert sum("tar --sort=name" in reason for reason in reasons) == 2
    dotted = [("a.1.jpg", picture()), ("a.1.txt", TEXT)]
    (failure,) = _index(tmp_path / "dotted", dotted).failures
    assert failure.reason.startswith("no picture: got ") and "first dot" in failure.reason


def test_members_that_no_sample_has_are_noted_and_never_listed(tmp_path: Path) -> None:
    """Oracle: a tar with everything in it, as a folder packed by GNU tar; the manifest as told."""
    manifest = _index(
        tmp_path,
        [
            ("./README", b"x"),
            ("./.hidden.jpg", b"x"),
            ("./d/a.jpg", picture()),
            ("./d/a.pyd", b"x"),
            ("./d/a.TXT", TEXT),
            ("./d/a.png", b"x"),
            ("./d/b.seg.png", b"x"),
            ("./d/b.webp", picture(50, 20, "WEBP")),
            ("./d/b.json", _meta("b")),
            ("d_a.jpg", picture()),
            ("d_a.txt", TEXT),
        ],
    )
    assert [(one.key, list(one.members)) for one in manifest.samples] == [
        ("d_a", ["jpg", "txt"]),
        ("d_b", ["webp", "json"]),
    ]
    assert (manifest.samples[1].width, manifest.samples[1].height) == (50, 20)
    assert [(one.key, one.reason) for one in manifest.notes] == [
        ("d_a", "left out: pyd, png"),
        ("d_b", "left out: seg.png"),
        ("./README", "left out: of no sample"),
        ("./.hidden.jpg", "left out: of no sample"),
    ]
    (failure,) = manifest.failures
    assert failure.key == "d_a" and failure.reason.startswith("duplicate")


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/x.jpg", "x\ny.jpg"])
def test_a_name_that_is_refused_costs_only_its_own_member(tmp_path: Path, name: str) -> None:
    """Oracle: the samples around it, as ingest takes them; a note has the name; verify, full, has
    no fault, and one where the note is missing."""
    odd = {"a.jpg": picture(), "a.txt": TEXT, name: b"x", "b.jpg": picture(), "b.txt": TEXT}
    manifest = _index(tmp_path, odd)
    assert [entry.key for entry in manifest.samples] == ["a", "b"] and not manifest.failures
    (note,) = manifest.notes
    assert note.key == "a member whose name is refused" and repr(name) in note.reason
    assert note.reason.isprintable()
    manifest_path(tmp_path / NAME).write_bytes(manifest_bytes(replace(manifest, notes=())))
    (fault,) = verify_shard(tmp_path / NAME, full=True)
    assert fault.key == "b" and "which the manifest does not note" in fault.cause


def test_links_that_are_noted_are_no_fault(tmp_path: Path) -> None:
    """Oracle: a link between samples and one at the end, one with a name that cannot be printed:
    two samples, three notes, and nothing for verify to find."""
    tar = tmp_path / NAME
    with tarfile.open(tar, "w") as archive:
        for name, data in (("a.jpg", picture()), ("a.txt", TEXT), ("l\n.jpg", None)):
            _add(archive, name, data)
        for name, data in (("m.jpg", None), ("b.jpg", picture()), ("b.txt", TEXT), ("n", None)):
            _add(archive, name, data)
    assert index_folder(tmp_path).num_ok == 2
    assert [note.key for note in read_manifest(tar).notes] == [repr("l\n.jpg"), "m.jpg", "n"]
    assert verify_paths([tmp_path], full=True) == []


def _add(archive: tarfile.TarFile, name: str, data: bytes | None) -> None:
    """A file of these bytes, or a symbolic link that points nowhere."""
    info = tarfile.TarInfo(name)
    if data is None:
        info.type, info.linkname = tarfile.SYMTYPE, "nowhere"
        archive.addfile(info)
    else:
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))


def test_what_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: bounds lowered to just below what is there; at the bound it is a sample."""
    members = {"a.jpg": picture(), "a.json": _meta("a"), "a.cls": bytes(9999)}
    for extension, num_bytes in (("jpg", len(picture())), ("json", len(_meta("a")))):
        monkeypatch.setitem(index._MAX_BYTES, extension, num_bytes)
        assert index_tar(write_tar(tmp_path / NAME, members)).num_ok == 1
        monkeypatch.setitem(index._MAX_BYTES, extension, num_bytes - 1)
        (failure,) = index_tar(tmp_path / NAME).failures
        assert failure.reason.startswith(f"too large: got {extension} of {num_bytes} bytes")
        monkeypatch.undo()
    apart = [("a.jpg", picture()), ("a.cls", bytes(9999)), ("a.txt", TEXT)]
    monkeypatch.setattr(index, "MAX_SAMPLE_BYTES", 9999)
    (failure,) = index_tar(write_tar(tmp_path / NAME, apart)).failures
    assert failure.reason.startswith("too large: got 1")


def test_a_broken_tar_is_refused_whole(tmp_path: Path) -> None:
    """Oracle: cut between members, where tarfile sees a sound end."""
    tar = _img2dataset(tmp_path / NAME, range(1, 4))
    tar.write_bytes(tar.read_bytes()[: index_tar(tar).samples[1].members["jpg"][0] - 512])
    with pytest.raises(ShardError, match="00000.tar: byte .* cut between two members"):
        index_tar(tar)


def test_indexing_again_keeps_what_is_sound_and_covers_no_damage(tmp_path: Path) -> None:
    """Oracle: files unchanged by a second run; a flipped bit is refused until the manifest goes."""
    tars = [_img2dataset(tmp_path / f"{t:05d}.tar", range(t * 9 + 1, t * 9 + 4)) for t in range(3)]
    seen: list[tuple[int, int]] = []
    index_folder(tmp_path, on_shard=lambda *done: seen.append(done))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert other_tars(tmp_path) == [], "manifests are no tars under another name"
    before = {path: (path.read_bytes(), path.stat().st_ino) for path in tmp_path.glob("*.tar.json")}
    index_folder(tmp_path)
    assert before == {path: (path.read_bytes(), path.stat().st_ino) for path in before}
    data = bytearray(tars[1].read_bytes())
    data[600] ^= 1
    tars[1].write_bytes(data)
    with pytest.raises(ShardError, match="1 of 3 tars cannot (.|\n)*00001.tar: got other"):
        index_folder(tmp_path)
    assert {path: (path.read_bytes(), path.stat().st_ino) for path in before} == before
    manifest_path(tars[1]).unlink()
    index_folder(tmp_path)
    assert verify_paths([tmp_path], full=True) == []


def test_folders_that_are_no_set_are_refused(
    tmp_path: Path, make_folder: Callable[..., Path], make_sample: Callable[..., Sample]
) -> None:
    """Oracle: no tars; no samples; objects in some; a key in two tars; a stage's own catalog."""
    with pytest.raises(ShardError, match="no tars, expected"):
        index_folder(tmp_path)
    (tmp_path / "A.TAR").write_bytes(b"x")
    (tmp_path / "b.tgz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(ShardError, match="no tars but 'A.TAR': rename.*'b.tgz': .*by gzip -d"):
        index_folder(tmp_path)
    write_tar(tmp_path / "0.tar", {"a.txt": TEXT})
    with pytest.raises(ShardError, match="0 samples"):
        index_folder(tmp_path)
    write_tar(tmp_path / "1.tar", {"a.jpg": picture(), "a.txt": TEXT})
    objects = encode_objects(make_sample(2).objects)
    write_tar(tmp_path / "2.tar", {"b.jpg": picture(), "b.txt": TEXT, "b.objects.npy": objects})
    with pytest.raises(ShardError, match="2 samples, 1 with objects.npy"):
        index_folder(tmp_path)
    write_tar(tmp_path / "2.tar", {"a.jpg": picture(), "a.txt": TEXT})
    manifest_path(tmp_path / "2.tar").unlink()
    with pytest.raises(ShardError, match="'a' in 1.tar and in 2.tar.*prefix_keys_by_tar"):
        index_folder(tmp_path)
    with pytest.raises(ShardError, match="of a stage"):
        index_folder(make_folder(tmp_path / "ours", [2]))


@pytest.mark.parametrize(
    "tar, split",
    [
        ("00000.tar", "train"),
        ("train-000000.tar", "train"),
        ("heldout-000000.tar", "heldout"),
        ("VAL_3.tar", "heldout"),
        ("test2017-0.tar", "heldout"),
        ("valley-0.tar", "train"),
    ],
)
def test_the_name_tells_the_split(tar: str, split: str) -> None:
    """Oracle: the cases."""
    assert split_of_name(tar) == split


def _forms() -> list[bytes]:
    """JPEGs, PNGs and WebPs of many kinds, the size 123 x 77."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    jpegs: list[dict[str, Any]] = [
        {},
        {"progressive": True},
        {"icc_profile": bytes(200_000)},
        {"exif": exif},
        {"comment": b"\xff\xc0 no frame"},
        {"restart_marker_blocks": 1},
        {"subsampling": 0},
    ]
    webps: list[dict[str, Any]] = [{}, {"lossless": True}, {"exif": exif}, {"quality": 1}]
    alpha = io.BytesIO()
    Image.new("RGBA", (123, 77), (9, 9, 9, 9)).save(alpha, "WEBP", lossless=True)
    return [
        *(picture(123, 77, "JPEG", **how) for how in jpegs),
        picture(123, 77, "PNG"),
        picture(123, 77, "PNG", icc_profile=bytes(999)),
        *(picture(123, 77, "WEBP", **how) for how in webps),
        alpha.getvalue(),
    ]


FORMS = _forms()


def test_sizes_are_those_of_pillow() -> None:
    """Oracle: the size that was asked for, and Pillow's of the upright picture."""
    for data in FORMS:
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert picture_size(data) == upright.size
        assert sorted(upright.size) == [77, 123]
    filled = FORMS[0][:20] + b"junk\xff\x00\xff\xff" + FORMS[0][20:]
    assert picture_size(filled) == Image.open(io.BytesIO(filled)).size == (123, 77)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.sampled_from(FORMS),
    st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=4),
    st.integers(0, 900),
)
def test_any_change_has_a_size_or_is_a_shard_error(
    data: bytes, changes: list[tuple[int, int]], end: int
) -> None:
    """Oracle: no other exception, and nothing over the bound."""
    changed = bytearray(data)
    for at, value in changes:
        changed[at % len(changed)] = value
    try:
        width, height = picture_size(bytes(changed[:end] if end % 2 else changed))
        assert 0 < width * height <= MAX_PIXELS
    except ShardError:
        pass
