"""Tests of sharding.format.catalog."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sharding.format import catalog as catalogs
from sharding.format.catalog import (
    Catalog,
    catalog_sha256,
    load_manifest,
    parse_catalog,
    read_catalog,
    read_shapes,
    shapes_of_split,
    write_catalog,
)
from sharding.format.manifest import manifest_path, manifest_sha256, read_manifest
from sharding.format.schema import Sample, ShardError
from sharding.format.shapes import manifest_shapes, parse_shapes, write_shapes
from sharding.reading.sample_reader import iterate
from sharding.writing.shard_writer import write_shard

MakeFolder = Callable[..., Path]


def test_the_catalog_lists_what_the_manifests_say(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Oracle: counts given to make_folder (one failure a shard), hashlib, stat."""
    folder = make_folder(tmp_path, [3, 0, 2])
    catalog = read_catalog(folder)
    assert catalog.kind == "objects" and catalog.metadata == {"label_names": ["a", "b"]}
    assert [(s.num_input, s.num_ok, s.num_failed) for s in catalog.shards] == [
        (4, 3, 1),
        (1, 0, 1),
        (3, 2, 1),
    ]
    assert catalog.tars(folder, "train") == sorted(folder.glob("*.tar"))
    for shard, tar in zip(catalog.shards, catalog.tars(folder, "train")):
        assert shard.bytes == tar.stat().st_size
        manifest = manifest_path(tar).read_bytes()
        assert shard.manifest_sha256 == hashlib.sha256(manifest).hexdigest() == manifest_sha256(tar)
    assert (
        catalog_sha256(folder) == hashlib.sha256((folder / "catalog.json").read_bytes()).hexdigest()
    )
    with pytest.raises(ShardError, match=r"split: got 'test', expected one of \['train'\]"):
        catalog.tars(folder, "test")


def test_splits_are_reported_apart(tmp_path: Path, make_sample: Callable[..., Sample]) -> None:
    """Oracle: the split given for each tar, listed by name whatever the order given."""
    names = ["train-000000.tar", "heldout-000000.tar", "train-000001.tar"]
    for index, name in enumerate(names):
        write_shard(tmp_path / name, [make_sample(index)], fingerprint={})
    splits = {name: name.split("-")[0] for name in reversed(names)}
    catalog = write_catalog(tmp_path, kind="objects", splits=splits, metadata={})
    assert catalog == read_catalog(tmp_path)
    assert [tar.name for tar in catalog.tars(tmp_path, "train")] == [names[0], names[2]]
    assert [tar.name for tar in catalog.tars(tmp_path, "heldout")] == [names[1]]


def test_unfinished_shards_and_repeated_keys_get_no_catalog(
    tmp_path: Path, make_sample: Callable[..., Sample]
) -> None:
    """Oracle: the error names what is wrong, and no catalog.json appears."""
    for name in ("a.tar", "b.tar"):
        write_shard(tmp_path / name, [make_sample(1)], fingerprint={})
    both = {"a.tar": "train", "b.tar": "heldout"}
    with pytest.raises(ShardError, match="picture-00001.*a.tar.*b.tar"):
        write_catalog(tmp_path, kind="images", splits=both, metadata={})
    with pytest.raises(ShardError, match="c.tar"):
        write_catalog(tmp_path, kind="images", splits={"c.tar": "train"}, metadata={})
    with pytest.raises(ShardError, match="kind: got 'pictures'"):
        write_catalog(tmp_path, kind="pictures", splits={"a.tar": "train"}, metadata={})
    os.truncate(tmp_path / "a.tar", 512)
    with pytest.raises(ShardError, match="another size"):
        write_catalog(tmp_path, kind="images", splits={"a.tar": "train"}, metadata={})
    assert not (tmp_path / "catalog.json").exists()


def test_writing_it_sweeps_up_after_killed_writers(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Oracle: temporary files of the folder's shards go, other hidden files stay."""
    folder = make_folder(tmp_path, [2])
    stale = [
        f".{name}.12-{'0' * 16}.tmp"
        for name in (
            "train-000000.tar",
            "train-000000.tar.json",
            "catalog.json",
            "catalog.shapes.npy",
        )
    ]
    other = [f".other.tar.12-{'0' * 16}.tmp", ".train-000000.tar.swp"]
    for name in stale + other:
        (folder / name).touch()
    splits = {"train-000000.tar": "train"}
    write_catalog(folder, kind="objects", splits=splits, metadata={})
    hidden = {name for name in os.listdir(folder) if name.startswith(".")}
    assert hidden == set(other)


def test_a_manifest_written_again_is_noticed(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Oracle: sound by itself, but not the one that the catalog saw."""
    folder = make_folder(tmp_path, [2])
    tar, shard = folder / "train-000000.tar", read_catalog(folder).shards[0]
    assert load_manifest(tar, shard).num_ok == 2
    write_shard(tar, [], fingerprint={})
    with pytest.raises(ShardError, match="written again"):
        load_manifest(tar, shard)


@pytest.mark.parametrize(
    "path, value",
    [
        (["schema"], "x"),
        (["kind"], "boxes"),
        (["shards"], 3),
        (["about"], 3),
        (["shards", 0, "tar"], "../x.tar"),
        (["shards", 0, "tar"], 1),
        (["shards", 0, "tar"], ""),
        (["shards", 0, "more"], 1),
        (["shards", 0, "bytes"], -1),
        (["shards", 0, "bytes"], "1"),
        (["shards", 0, "num_ok"], 1),
        (["shards", 0, "split"], None),
        (["shards", 0, "tar"], "a\nb.tar"),
        (["shards", 0, "tar"], "train-000001.tar"),
        (["shapes_sha256"], "abc"),
        (["shapes_sha256"], "00"),
        (["shapes_sha256"], 3),
    ],
    ids=str,
)
def test_odd_catalogs_are_refused(
    tmp_path: Path, make_folder: MakeFolder, path: list[Any], value: Any
) -> None:
    """Oracle: a sound catalog with one thing changed; the error names the file."""
    folder = make_folder(tmp_path, [2, 0])
    raw = json.loads((folder / "catalog.json").read_bytes())
    inner = raw
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    (folder / "catalog.json").write_text(json.dumps(raw))
    with pytest.raises(ShardError, match=r"catalog\.json: got"):
        read_catalog(folder)


@pytest.mark.parametrize("data", [b"", b"[]", b"3", b"[" * 100_000], ids=range(4))
def test_what_is_no_catalog_is_refused(tmp_path: Path, data: bytes) -> None:
    """Oracle: files that are no catalog, and no file at all."""
    with pytest.raises(ShardError, match="got no catalog"):
        read_catalog(tmp_path)
    (tmp_path / "catalog.json").write_bytes(data)
    with pytest.raises(ShardError, match="expected a catalog"):
        read_catalog(tmp_path)


@pytest.mark.parametrize(
    "data, cause",
    [
        (b" \n", "the file is empty; copy or download it again"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html>", "it is a web page, .*download it again"),
        (b'<?xml version="1.0"?><Error>', "it is a web page, .*download it again"),
        (gzip.compress(b"{}"), "compressed by gzip; unpack it by gzip -d first"),
        (b'{"schema": "boxless/catalog/1", "shards": [', "it is cut short"),
        (b'{"schema": "boxless/catalog/1", "shards": []', "it is cut short"),
    ],
    ids=["empty", "page", "error of a store", "compressed", "cut", "cut at a bracket"],
)
def test_what_stands_in_place_of_a_catalog_or_a_manifest_is_named(
    tmp_path: Path, make_folder: MakeFolder, data: bytes, cause: str
) -> None:
    """Oracle: the cause by hand, in the catalog's error, the manifest's, and where the manifest is
    not the one of the catalog: then it has not been written again."""
    folder = make_folder(tmp_path, [2])
    (shard,) = read_catalog(folder).shards
    manifest_path(folder / shard.tar).write_bytes(data)
    with pytest.raises(ShardError, match=f"train-000000.tar.json: got .*: .*{cause}"):
        read_manifest(folder / shard.tar)
    with pytest.raises(ShardError, match=f"train-000000.tar.json: got .*: .*{cause}") as caught:
        load_manifest(folder / shard.tar, shard)
    assert "written again" not in str(caught.value)
    (folder / "catalog.json").write_bytes(data)
    with pytest.raises(ShardError, match=f"catalog.json: got .*: .*{cause}.*, expected a catalog"):
        read_catalog(folder)


def test_a_catalog_comes_from_bytes_too(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Oracle: the one read from the folder; an odd one is called by the name given."""
    folder = make_folder(tmp_path, [2, 1])
    data = (folder / "catalog.json").read_bytes()
    assert parse_catalog(data, "s3://bucket/catalog.json") == read_catalog(folder)
    with pytest.raises(ShardError, match="^s3://bucket/catalog.json: got"):
        parse_catalog(data[:-5], "s3://bucket/catalog.json")


def test_keys_are_compared_where_their_hashes_agree(
    tmp_path: Path, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: all keys have one hash and differ, so nothing is wrong; and then two are the same."""
    monkeypatch.setattr(catalogs, "hash", lambda key: 7, raising=False)
    folder = make_folder(tmp_path, [2, 2])
    tars = ["train-000000.tar", "train-000001.tar", "twin.tar"]
    write_shard(folder / "twin.tar", iterate(folder / tars[1]), fingerprint={})
    with pytest.raises(ShardError, match="picture-00002' in train-000001.tar and in twin.tar"):
        write_catalog(folder, kind="objects", splits=dict.fromkeys(tars, "train"), metadata={})


def _sizes_px(folder: Path, catalog: Catalog, split: str) -> list[list[int]]:
    """The shapes as the manifests say them, one after the other."""
    return [
        [entry.width, entry.height]
        for tar in catalog.tars(folder, split)
        for entry in read_manifest(tar).samples
    ]


def test_shapes_lie_beside_the_catalog(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Oracle: the manifests, numpy.load, hashlib."""
    folder = make_folder(tmp_path, [3, 0, 2])
    catalog = read_catalog(folder)
    shapes = read_shapes(folder, catalog)
    assert shapes is not None and not shapes.flags.writeable and catalog.num_ok == 5
    assert shapes.tolist() == _sizes_px(folder, catalog, "train")
    path = folder / "catalog.shapes.npy"
    loaded = np.load(path, allow_pickle=False)
    assert loaded.dtype == np.uint16 and np.array_equal(loaded, shapes)
    data = path.read_bytes()
    assert catalog.shapes_sha256 == hashlib.sha256(data).hexdigest()
    assert np.array_equal(
        shapes, parse_shapes(data, num_samples=5, sha256=catalog.shapes_sha256, where="there")
    )


def test_a_split_has_its_own_shapes(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Oracle: the manifests; a view where a split's shards lie side by side, a copy elsewhere."""
    folder = make_folder(tmp_path, [3, 1, 0, 2])
    splits = dict(zip(sorted(tar.name for tar in folder.glob("*.tar")), "abbc"))
    for name, new in (("train-000003.tar", "c"), ("train-000003.tar", "a")):
        splits[name] = new
        catalog = write_catalog(folder, kind="objects", splits=splits, metadata={})
        shapes = read_shapes(folder, catalog)
        assert shapes is not None
        for split in set(splits.values()):
            rows = shapes_of_split(shapes, catalog, split)
            assert rows.tolist() == _sizes_px(folder, catalog, split)
            assert np.shares_memory(rows, shapes) == (split == "b" or new == "c")
        assert shapes_of_split(shapes, catalog, "none").shape == (0, 2)


def test_a_catalog_from_before_has_no_shapes(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Oracle: catalog.json without the field reads as ever, and the file beside it is not used."""
    folder = make_folder(tmp_path, [2])
    raw = json.loads((folder / "catalog.json").read_bytes())
    del raw["shapes_sha256"]
    (folder / "catalog.json").write_text(json.dumps(raw))
    catalog = read_catalog(folder)
    assert catalog.shapes_sha256 is None and catalog.num_ok == 2
    assert read_shapes(folder, catalog) is None


def test_an_empty_folder_has_no_shapes_and_a_catalog(tmp_path: Path) -> None:
    """Oracle: no shards, no samples, an array [0, 2]."""
    catalog = write_catalog(tmp_path, kind="images", splits={}, metadata={})
    shapes = read_shapes(tmp_path, catalog)
    assert shapes is not None and shapes.shape == (0, 2)


def test_shapes_of_another_catalog_are_never_used(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Oracle: a kill between the two files, played by putting the older catalog back: both have
    three samples, and only the SHA-256 tells them apart.
    """
    folder = make_folder(tmp_path, [2, 1])
    before = (folder / "catalog.json").read_bytes()
    write_catalog(
        folder,
        kind="objects",
        metadata={},
        splits={"train-000000.tar": "train", "train-000001.tar": "train"},
    )
    shapes = np.load(folder / "catalog.shapes.npy")
    write_shapes(folder / "catalog.shapes.npy", [shapes[::-1]])
    (folder / "catalog.json").write_bytes(before)
    with pytest.raises(ShardError, match=r"catalog\.shapes\.npy: got SHA-256 .*of another catalog"):
        read_shapes(folder, read_catalog(folder))


def test_large_pictures_take_four_bytes_a_side(tmp_path: Path) -> None:
    """Oracle: 70000 needs more than two bytes; mixed pieces become one array of the larger kind."""
    small, large = np.array([[1, 2]], np.uint16), np.array([[70_000, 3]], np.uint32)
    path = tmp_path / "shapes.npy"
    sha256 = write_shapes(path, [small, large])
    assert np.load(path).tolist() == [[1, 2], [70_000, 3]]
    parsed = parse_shapes(path.read_bytes(), num_samples=2, sha256=sha256, where="there")
    assert parsed.dtype == np.uint32 and parsed.tolist() == [[1, 2], [70_000, 3]]


def test_sides_beyond_four_bytes_are_refused(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Oracle: a manifest whose picture is 2^32 px wide; the error names the shard."""
    folder = make_folder(tmp_path, [1])
    manifest = read_manifest(folder / "train-000000.tar")
    entry = replace(manifest.samples[0], width=2**32)
    with pytest.raises(ShardError, match="^train-000000.tar: got a picture"):
        manifest_shapes(replace(manifest, samples=(entry,)))


def _npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff\xff" + bytes(132),
        bytes(148),
        _npy(np.ones((5, 2), np.uint64)),
        _npy(np.ones((5, 2), np.float16)),
        _npy(np.ones((2, 5), np.uint16)),
        _npy(np.ones((6, 2), np.uint16)),
        _npy(np.ones((5, 2), np.uint16, order="F")),
        _npy(np.array([[{}, "a"]] * 5, object)),
        _npy(np.ones((5, 2), np.uint16))[:-1],
        _npy(np.ones((5, 2), np.uint16)) + b"1",
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '<u2', 'fortran_order': False, 'shape': (1000000000000, 2), }".ljust(117)
        + b"\n"
        + bytes(20),
    ],
    ids=range(13),
)
def test_odd_shapes_are_refused(tmp_path: Path, make_folder: MakeFolder, data: bytes) -> None:
    """Oracle: files of another kind, type, shape or length, though the catalog names their SHA-256;
    the error names the file.
    """
    folder = make_folder(tmp_path, [3, 2])
    path = folder / "catalog.shapes.npy"
    path.write_bytes(data)
    catalog = replace(read_catalog(folder), shapes_sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(ShardError, match=r"catalog\.shapes\.npy: got"):
        read_shapes(folder, catalog)
    path.unlink()
    with pytest.raises(ShardError, match=r"catalog\.shapes\.npy: got .*No such file"):
        read_shapes(folder, catalog)
