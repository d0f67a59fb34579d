"""Tests of sharding.catalog."""
from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sharding.catalog import catalog_sha256, load_manifest, read_catalog, write_catalog
from sharding.manifest import manifest_path, manifest_sha256
from sharding.schema import Sample, ShardError
from sharding.write import write_shard

MakeFolder = Callable[..., Path]


def test_the_catalog_lists_what_the_manifests_say(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Oracle: counts given to make_folder (one failure a shard), hashlib, stat."""
    folder = make_folder(tmp_path, [3, 0, 2])
    catalog = read_catalog(folder)
    assert catalog.kind == "objects" and catalog.about == {"label_names": ["a", "b"]}
    assert [(s.num_input, s.num_ok, s.num_failed) for s in catalog.shards] == [
        (4, 3, 1), (1, 0, 1), (3, 2, 1)]
    assert catalog.tars(folder, "train") == sorted(folder.glob("*.tar"))
    for shard, tar in zip(catalog.shards, catalog.tars(folder, "train")):
        assert shard.bytes == tar.stat().st_size
        manifest = manifest_path(tar).read_bytes()
        assert shard.manifest_sha256 == hashlib.sha256(manifest).hexdigest() == manifest_sha256(tar)
    assert catalog_sha256(folder) == hashlib.sha256(
        (folder / "catalog.json").read_bytes()).hexdigest()
    with pytest.raises(ShardError, match=r"split: got 'test', expected one of \['train'\]"):
        catalog.tars(folder, "test")


def test_splits_are_told_apart(tmp_path: Path, make_sample: Callable[..., Sample]) -> None:
    """Oracle: the split given for each tar, listed by name whatever the order given."""
    names = ["train-000000.tar", "heldout-000000.tar", "train-000001.tar"]
    for index, name in enumerate(names):
        write_shard(tmp_path / name, [make_sample(index)], fingerprint={})
    splits = {name: name.split("-")[0] for name in reversed(names)}
    catalog = write_catalog(tmp_path, kind="objects", splits=splits, about={})
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
        write_catalog(tmp_path, kind="images", splits=both, about={})
    with pytest.raises(ShardError, match="c.tar"):
        write_catalog(tmp_path, kind="images", splits={"c.tar": "train"}, about={})
    with pytest.raises(ShardError, match="kind: got 'pictures'"):
        write_catalog(tmp_path, kind="pictures", splits={"a.tar": "train"}, about={})
    os.truncate(tmp_path / "a.tar", 512)
    with pytest.raises(ShardError, match="another size"):
        write_catalog(tmp_path, kind="images", splits={"a.tar": "train"}, about={})
    assert not (tmp_path / "catalog.json").exists()


def test_writing_it_sweeps_up_after_killed_writers(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Oracle: temporary files of the folder's shards go, other hidden files stay."""
    folder = make_folder(tmp_path, [2])
    stale = [f".{name}.12-{'0' * 16}.tmp" for name in (
        "train-000000.tar", "train-000000.tar.json", "catalog.json")]
    other = [f".other.tar.12-{'0' * 16}.tmp", ".train-000000.tar.swp"]
    for name in stale + other:
        (folder / name).touch()
    splits = {"train-000000.tar": "train"}
    write_catalog(folder, kind="objects", splits=splits, about={})
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


@pytest.mark.parametrize("path, value", [
    (["schema"], "x"), (["kind"], "boxes"), (["shards"], 3), (["about"], 3),
    (["shards", 0, "tar"], "../x.tar"), (["shards", 0, "tar"], 1), (["shards", 0, "tar"], ""),
    (["shards", 0, "more"], 1), (["shards", 0, "bytes"], -1), (["shards", 0, "bytes"], "1"),
    (["shards", 0, "num_ok"], 1), (["shards", 0, "split"], None),
], ids=str)
def test_odd_catalogs_are_refused(
    tmp_path: Path, make_folder: MakeFolder, path: list[Any], value: Any
) -> None:
    """Oracle: a sound catalog with one thing changed; the error names the file."""
    folder = make_folder(tmp_path, [2])
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
