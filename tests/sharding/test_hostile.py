"""Tars, manifests and catalogs made to do harm, through everything that reads them.

Each is refused (ShardError), becomes a failure with its reason, or is left out; nothing in it is
executed, and memory stays bounded. The tars of names, links and sizes are in test_scan.
"""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from sharding.format import tar_scan as scan
from sharding.format.catalog import read_catalog, write_catalog
from sharding.format.manifest import (
    Manifest,
    SampleEntry,
    manifest_bytes,
    manifest_path,
    manifest_sha256,
    read_manifest,
)
from sharding.format.schema import ShardError, encode_objects, object_dtype
from sharding.reading.sample_reader import OpenTar, iterate
from sharding.reading.stream import DatasetSource, ShardStream
from sharding.reading.webdataset_adapter import WebdatasetAdapter
from sharding.tools import index
from sharding.tools.index import index_folder, index_tar
from sharding.tools.verify import verify_paths

NAME = "00000.tar"
DEEP = b"[" * 100_000 + b"]" * 100_000
PICKLED_EXTENSIONS = ("pyd", "pkl", "pickle", "pth", "pt", "cbor", "ten", "npy", "npz", "mp")


def _jpeg() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), (9, 99, 199)).save(out, "JPEG")
    return out.getvalue()


JPEG = _jpeg()


def _write_tar(path: Path, members: dict[str, bytes]) -> dict[str, tuple[int, int]]:
    """Writes a tar; returns where each member's bytes are in it."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with tarfile.open(path) as archive:
        return {info.name: (info.offset_data, info.size) for info in archive}


def _vouch(tar: Path, members: dict[str, bytes]) -> None:
    """A tar of one sample "a" with a manifest and a catalog that are true in every checksum."""
    places = _write_tar(tar, members)
    crc32 = zlib.crc32(b"".join(members.values()))
    entry = SampleEntry("a", 40, 30, crc32, {n.partition(".")[2]: p for n, p in places.items()})
    manifest = Manifest(
        tar=tar.name,
        tar_bytes=tar.stat().st_size,
        sha256=index_tar(tar).sha256,
        samples=(entry,),
        failures=(),
        notes=(),
        fingerprint={},
    )
    manifest_path(tar).write_bytes(manifest_bytes(manifest))
    kind = "objects" if "a.objects.npy" in members else "images"
    write_catalog(tar.parent, kind=kind, splits={tar.name: "train"}, metadata={})


def _stream(folder: Path) -> ShardStream:
    return ShardStream(
        [DatasetSource(folder)], seed=0, micro_batch_size=2, window_num_shards=1, shape_step_px=64
    )


@contextmanager
def _at_most(num_bytes: int) -> Iterator[None]:
    """Fails if Python's memory grows by more, numpy's included."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= num_bytes, f"{peak} bytes, expected at most {num_bytes}"


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    """Oracle: a payload that makes a file when it is unpickled, as webdataset's decode shows."""
    folder, mark = tmp_path / "shards", tmp_path / "executed"
    folder.mkdir()
    # What pickle.dumps gives for an object whose __reduce__ is (open, (mark, "w")).
    payload = f"cio\nopen\n(V{mark}\nVw\ntR.".encode()
    pickled = {f"a.{extension}": payload for extension in PICKLED_EXTENSIONS}
    members = {"a.jpg": JPEG, "a.txt": b"a caption", **pickled}
    members |= {f"b.{extension}": payload for extension in ("jpg", "json", "objects.npy")}
    _write_tar(folder / NAME, members)
    keys = ("a.jpg", "a.pyd")
    _write_tar(tmp_path / "live.tar", {key: members[key] for key in keys})
    list(webdataset.WebDataset(str(tmp_path / "live.tar"), shardshuffle=False).decode())
    assert mark.exists(), "the payload is not live, so the rest of this test would say nothing"
    mark.unlink()

    index_folder(folder)
    (entry,) = read_manifest(folder / NAME).samples
    (failure,) = read_manifest(folder / NAME).failures
    (note,) = read_manifest(folder / NAME).notes
    assert list(entry.members) == ["jpg", "txt"] and failure.key == "b"
    assert note.reason == f"left out: {', '.join(PICKLED_EXTENSIONS)}"
    assert verify_paths([folder], full=True) == []
    (sample,) = iterate(folder / NAME)
    stream = _stream(folder)
    (streamed,) = stream[0]
    assert sample.image == streamed.image == JPEG and stream.read(0).faults == ()
    one = next(iter(WebdatasetAdapter(stream, start=0, rank=0, world_size=1).decode("pil")))
    assert {name for name in one if not name.startswith("__")} == {"jpg", "txt"}
    assert not mark.exists()


def _npy(descr: object, shape: str, payload: bytes = b"", fortran: str = "False") -> bytes:
    header = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + payload


DESCR = object_dtype(feature_size=8, num_top=3, attributes=False).descr
SOUND = encode_objects(np.zeros(1, object_dtype(feature_size=8, num_top=3, attributes=False)))
ARRAYS = {
    "absurd shape": _npy(DESCR, "(1000000000000,)", bytes(99)),
    "absurder shape": _npy(DESCR, f"({10**30},)", bytes(99)),
    "negative shape": _npy(DESCR, "(-1,)", bytes(99)),
    "many axes": _npy(DESCR, "(" + "1," * 999 + ")", bytes(99)),
    "shape with a call": _npy(DESCR, "(__import__('os').getpid(),)", bytes(99)),
    "pickled objects": _npy("|O", "(1,)", b"cio\nopen\n(V/nowhere\nVw\ntR."),
    "objects in a field": _npy([(name, "|O") for name, *_ in DESCR], "(1,)", bytes(99)),
    "absurd row": _npy([(n, "<f4", (1 << 40,)) for n, *_ in DESCR], "(0,)"),
    "big-endian": _npy([(d[0], d[1].replace("<", ">"), *d[2:]) for d in DESCR], "(0,)"),
    "turned": _npy([("x", "<f4", (2, 2))], "(1,)", bytes(16), "True"),
    "header of another length": SOUND[:8] + b"\xff\xff" + SOUND[10:],
    "deep header": _npy("", "(" * 250 + ")" * 250),
    "version 3": b"\x93NUMPY\x03\x00" + SOUND[8:],
    "cut": SOUND[:-1],
    "longer": SOUND + b"x",
    "nothing": b"",
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_are_no_objects_are_refused(tmp_path: Path, name: str) -> None:
    """Oracle: a failure in the index; ShardError and a fault where a manifest vouches for it."""
    tar = tmp_path / NAME
    members = {"a.jpg": JPEG, "a.json": b'{"caption": "x"}', "a.objects.npy": SOUND}
    _write_tar(tar, members)
    assert index_tar(tar).num_ok == 1
    _vouch(tar, {**members, "a.objects.npy": ARRAYS[name]})
    with _at_most(4 << 20):
        (failure,) = index_tar(tar).failures
        assert "objects: got" in failure.reason
        _is_refused_by_all(tar, "objects: got")


def _is_refused_by_all(tar: Path, cause: str) -> None:
    """One sample "a" is refused in order, in the stream and by verify, with its key and cause."""
    with pytest.raises(ShardError, match=f"{NAME}: sample a: .*{cause}"):
        list(iterate(tar))
    stream = _stream(tar.parent)
    with pytest.raises(ShardError, match=f"{NAME}: .*a: .*{cause}"):
        stream[0]
    (fault,) = stream.read(0).faults
    assert (fault.tar, fault.key) == (str(tar), "a") and cause in fault.cause
    (fault,) = verify_paths([tar.parent], full=True)
    assert (fault.tar, fault.key) == (str(tar), "a") and cause in fault.cause


def test_deep_json_is_refused(tmp_path: Path) -> None:
    """Oracle: 10^5 deep in a sample, a manifest, a catalog; and 500, which Python would parse."""
    tar = tmp_path / NAME
    for depth in (100_000, 500):
        deep = b'{"caption": "x", "x": ' + b"[" * depth + b"]" * depth + b"}"
        _vouch(tar, {"a.jpg": JPEG, "a.json": deep})
        (failure,) = index_tar(tar).failures
        assert failure.reason.startswith("json: got")
        if depth > 500:
            _is_refused_by_all(tar, "json: got")
    _vouch(tar, {"a.jpg": JPEG, "a.json": b'{"caption": "x"}'})
    sound = (tmp_path / "catalog.json").read_bytes()
    for evil in (DEEP, b'{"about": ' + DEEP + b"," + sound[1:], b'{"shards": ' * 100_000):
        (tmp_path / "catalog.json").write_bytes(evil)
        with pytest.raises(ShardError, match="catalog.json: got"):
            read_catalog(tmp_path)
        with pytest.raises(ShardError, match="catalog.json: got"):
            _stream(tmp_path)
        assert "catalog.json: got" in verify_paths([tmp_path], full=True)[0].cause
    (tmp_path / "catalog.json").write_bytes(sound)
    for evil in (DEEP, b'{"samples": ' + DEEP + b"}", b'{"samples": ' * 100_000):
        manifest_path(tar).write_bytes(evil)
        with pytest.raises(ShardError, match="00000.tar.json: got"):
            read_manifest(tar)
        with pytest.raises(ShardError, match="00000.tar.json: got"):
            _stream(tmp_path)[0]
        assert "00000.tar.json: got" in verify_paths([tmp_path], full=True)[0].cause


def test_a_manifest_lists_no_more_than_pictures_texts_and_objects(tmp_path: Path) -> None:
    """Oracle: a pickle in a manifest, which names it as a member like others, is refused."""
    tar = tmp_path / NAME
    _vouch(tar, {"a.jpg": JPEG, "a.json": b'{"caption": "x"}'})
    raw = json.loads(manifest_path(tar).read_bytes())
    raw["samples"][0]["members"]["pyd"] = raw["samples"][0]["members"].pop("json")
    manifest_path(tar).write_text(json.dumps(raw))
    catalog = json.loads((tmp_path / "catalog.json").read_text())
    catalog["shards"][0]["manifest_sha256"] = manifest_sha256(tar)
    (tmp_path / "catalog.json").write_text(json.dumps(catalog))
    with pytest.raises(ShardError, match="'pyd'"):
        list(iterate(tar))
    with pytest.raises(ShardError, match="'pyd'"):
        _stream(tmp_path)[0]
    assert "'pyd'" in verify_paths([tmp_path], full=True)[0].cause


def _png_bomb(width: int, height: int) -> bytes:
    """A sound PNG of black pixels, one bit each: a few kB for gigabytes as RGB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc32 = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc32

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + -(-width // 8))) for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(b"IDAT", rows + packer.flush()) + chunk(b"IEND", b""))
    )


def test_decompression_bombs_are_failures(tmp_path: Path) -> None:
    """Oracle: Pillow opens it as 900 megapixels; the index takes less memory than one row."""
    bomb = _png_bomb(30_000, 30_000)
    Image.MAX_IMAGE_PIXELS, kept = None, Image.MAX_IMAGE_PIXELS
    assert Image.open(io.BytesIO(bomb)).size == (30_000, 30_000) and len(bomb) < 200_000
    Image.MAX_IMAGE_PIXELS = kept
    huge_jpeg = JPEG.replace(struct.pack(">HH", 30, 40), b"\xff\xff\xff\xff")
    members = {"a.png": bomb, "a.txt": b"x", "b.jpg": huge_jpeg, "b.txt": b"x"}
    _write_tar(tmp_path / NAME, {**members, "c.jpg": JPEG, "c.txt": b"x"})
    with _at_most(4 << 20):
        manifest = index_tar(tmp_path / NAME)
    assert [entry.key for entry in manifest.samples] == ["c"]
    assert [
        "30000 x 30000" in manifest.failures[0].reason,
        "65535 x 65535" in manifest.failures[1].reason,
    ] == [True, True]


def test_a_huge_member_is_not_held(tmp_path: Path) -> None:
    """Oracle: holes, which a disk gives for nothing, just over the bound, picture and pickle."""
    tar = tmp_path / NAME
    size = (128 << 20) + 512
    with open(tar, "wb") as out:
        for name in ("a.jpg", "b.pyd"):
            info = tarfile.TarInfo(name)
            info.size = size
            out.write(info.tobuf(tarfile.GNU_FORMAT))
            out.seek(size, 1)
        out.write(bytes(1024))
    with _at_most(8 << 20):
        manifest = index_tar(tar)
    assert [failure.reason for failure in manifest.failures] == [
        "too large: got jpg of 134218240 bytes, expected at most 134217728",
        "no picture: got pyd",
    ]


class _Headers:
    """A tar of a million empty members of one name length, made when asked for."""

    num_bytes = 512 * 1_000_000 + 1024

    def __init__(self, name: Callable[[int], bytes]) -> None:
        self._name = name
        self._header = tarfile.TarInfo(name(0).decode()).tobuf(tarfile.USTAR_FORMAT)
        self._sum = sum(self._header) - sum(self._header[148:156]) - sum(name(0)) + 8 * ord(" ")

    def read(self, offset: int, num_bytes: int) -> bytes:
        blocks = []
        for number in range(offset // 512, (offset + num_bytes) // 512):
            name = self._name(number)
            checksum = b"%06o\0 " % (self._sum + sum(name))
            blocks.append(name + self._header[len(name) : 148] + checksum + self._header[156:])
        return b"".join(blocks)


@pytest.mark.parametrize(
    "name",
    [
        lambda number: b"k%07d.jpg" % number,
        lambda number: b".%07d.jpg" % number,
        lambda number: b"k.%07d" % number,
    ],
    ids=["a failure each", "of no sample", "of one sample"],
)
def test_a_million_members_are_refused_in_bounded_memory(
    monkeypatch: pytest.MonkeyPatch, name: Callable[[int], bytes]
) -> None:
    """Oracle: 500 bytes each, which is 200 MB for as many as are allowed; more are refused."""
    assert scan.MAX_MEMBERS * 500 <= 200_000_000
    num_members = 10_000
    monkeypatch.setattr(scan, "MAX_MEMBERS", num_members)
    monkeypatch.setattr(index, "OpenTar", lambda path: _Headers(name))
    with _at_most((6 << 20) + 500 * num_members):
        with pytest.raises(ShardError, match=f"byte {512 * (num_members + 1)}: got more than"):
            index_tar(Path(NAME))


def test_names_with_newlines_are_refused_and_shown_in_one_line(tmp_path: Path) -> None:
    """Oracle: in a tar, as the tar's own name, and in a catalog."""
    _write_tar(tmp_path / NAME, {"a\nINFO all is well.jpg": JPEG})
    (note,) = index_tar(tmp_path / NAME).notes
    assert note.key.isprintable() and note.reason.isprintable()
    _vouch(tmp_path / NAME, {"a.jpg": JPEG, "a.json": b'{"caption": "x"}'})
    raw = json.loads((tmp_path / "catalog.json").read_text())
    for name in ("a\nb.tar", "../00000.tar", "/etc/x.tar", "a\x1b[2J.tar"):
        raw["shards"][0]["tar"] = name
        (tmp_path / "catalog.json").write_text(json.dumps(raw))
        with pytest.raises(ShardError) as caught:
            _stream(tmp_path)
        assert str(caught.value).isprintable()
        assert all(fault.cause.isprintable() for fault in verify_paths([tmp_path], full=True))
    odd = tmp_path / "odd"
    odd.mkdir()
    _write_tar(odd / "a\nb.tar", {"a.jpg": JPEG, "a.txt": b"x"})
    with pytest.raises(ShardError, match="odd names"):
        index_folder(odd)


def test_links_lead_nowhere(tmp_path: Path) -> None:
    """Oracle: a symbolic and a hard link to a file outside: noted in the manifest, not followed."""
    (tmp_path / "secret.jpg").write_bytes(JPEG)
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        with tarfile.open(tmp_path / NAME, "w") as archive:
            info = tarfile.TarInfo("a.jpg")
            info.type, info.linkname = kind, str(tmp_path / "secret.jpg")
            archive.addfile(info)
        with pytest.raises(ShardError, match="got 0 samples"):
            index_folder(tmp_path)
        (manifest,) = tmp_path.glob("*.json")
        (note,) = read_manifest(tmp_path / NAME).notes
        assert note.key == "a.jpg" and "link" in note.reason
        manifest.unlink()


def test_a_manifest_that_says_a_terabyte_is_refused(tmp_path: Path) -> None:
    """Oracle: the tar is a hole of a terabyte, so every size agrees; nothing is allocated."""
    tar = tmp_path / NAME
    _vouch(tar, {"a.jpg": JPEG, "a.json": b'{"caption": "x"}'})
    with open(tar, "rb+") as out:
        out.truncate(1 << 40)
    manifest = replace(read_manifest(tar), tar_bytes=1 << 40)
    members = {"jpg": (512, 1 << 39), "json": (512 + (1 << 39), 2)}
    entry = replace(manifest.samples[0], members=members)
    manifest_path(tar).write_bytes(manifest_bytes(replace(manifest, samples=(entry,))))
    with _at_most(4 << 20):
        with pytest.raises(ShardError, match="within 1073741824 bytes"):
            list(iterate(tar))
        assert "within 1073741824" in verify_paths([tmp_path], full=True)[0].cause


def test_a_pipe_with_a_tar_s_name_is_not_waited_for(tmp_path: Path) -> None:
    """Oracle: ShardError at once; opened in the plain way it waits for a writer for ever."""
    os.mkfifo(tmp_path / "train-000000.tar")
    with pytest.raises(ShardError, match="no regular file"):
        OpenTar(tmp_path / "train-000000.tar")
