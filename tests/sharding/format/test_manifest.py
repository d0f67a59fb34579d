"""Tests of sharding.format.manifest: what it refuses, and that it never raises anything but
ShardError."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.format import manifest as manifests
from sharding.format.manifest import (
    Manifest,
    SampleEntry,
    is_done,
    manifest_bytes,
    manifest_path,
    parse_manifest,
    read_manifest,
)
from sharding.format.schema import Failure, Note, ShardError

TAR = Path("train-000000.tar")
SOUND = Manifest(
    tar=TAR.name,
    tar_bytes=4096,
    sha256="ab" * 32,
    samples=(
        SampleEntry("a", 4, 3, 7, {"png": (512, 10), "json": (1024, 9)}),
        SampleEntry("b", 4, 3, 8, {"jpg": (1536, 10), "json": (2048, 9), "objects.npy": (2560, 9)}),
    ),
    failures=(Failure(key="bad one", reason="why"),),
    notes=(Note(key="a", reason="what"),),
    fingerprint={"teacher": "1"},
)


def _parse(raw: Any) -> Manifest:
    return parse_manifest(json.dumps(raw).encode(), TAR)


def test_the_file_is_the_one_of_the_spec() -> None:
    """Oracle: the json spelled out; members come back in the order of the tar, png before json."""
    raw = json.loads(manifest_bytes(SOUND))
    assert raw == {
        "schema": "boxless/manifest/1",
        "tar": TAR.name,
        "bytes": 4096,
        "sha256": "ab" * 32,
        "counts": {"input": 3, "ok": 2, "failed": 1},
        "samples": [
            {
                "key": "a",
                "width": 4,
                "height": 3,
                "crc32": 7,
                "members": {"png": [512, 10], "json": [1024, 9]},
            },
            {
                "key": "b",
                "width": 4,
                "height": 3,
                "crc32": 8,
                "members": {"jpg": [1536, 10], "json": [2048, 9], "objects.npy": [2560, 9]},
            },
        ],
        "failures": [{"key": "bad one", "reason": "why"}],
        "notes": [{"key": "a", "reason": "what"}],
        "fingerprint": {"teacher": "1"},
    }
    assert _parse(raw) == SOUND
    assert list(_parse(raw).samples[0].members) == ["png", "json"]
    assert _parse(raw).samples[0].extension == "png"


@pytest.mark.parametrize(
    "path, value",
    [
        (["schema"], "boxless/manifest/2"),
        (["tar"], "train-000001.tar"),
        (["bytes"], -1),
        (["bytes"], True),
        (["bytes"], 2568),
        (["sha256"], "ab"),
        (["sha256"], None),
        (["counts", "ok"], 3),
        (["counts", "failed"], 0),
        (["counts"], {}),
        (["samples"], None),
        (["samples", 0], []),
        (["samples", 0, "key"], "a.b"),
        (["samples", 1, "key"], "a"),
        (["samples", 0, "width"], 0),
        (["samples", 0, "crc32"], 1 << 32),
        (["samples", 0, "more"], 1),
        (["samples", 0, "members"], {"json": [1024, 9]}),
        (["samples", 0, "members", "exe"], [1200, 9]),
        (["samples", 0, "members", "json"], [504, 9]),
        (["samples", 0, "members", "json"], [520, 9]),
        (["samples", 0, "members", "json"], [4090, 9]),
        (["samples", 0, "members", "json"], [1024, -9]),
        (["samples", 0, "members", "json"], [1024.0, 9]),
        (["samples", 0, "members", "json"], [1024, 9, 1]),
        (["samples", 0, "members", "jpg"], [1544, 9]),
        (["samples", 0, "members"], {"png": [512, 10]}),
        (["samples", 0, "members"], {"png": [512, 10], "objects.npy": [1200, 9]}),
        (["samples", 0, "members"], {"png": [512, 10], "json": [1200, 9], "pyd": [1800, 9]}),
        (["samples", 0, "width"], 4.0),
        (["samples", 0, "width"], True),
        (["samples", 0, "height"], float("nan")),
        (["samples", 0, "height"], 1 << 31),
        (["samples", 0, "crc32"], 10**4000),
        (["bytes"], float("inf")),
        (["bytes"], float("nan")),
        (["samples", 0, "members", "json"], ["1024", 9]),
        (["failures", 0, "reason"], 1),
        (["failures", 0, "more"], "x"),
        (["notes"], 3),
        (["fingerprint"], []),
        (["fingerprint", "teacher"], 1),
    ],
    ids=str,
)
def test_odd_manifests_are_refused(path: list[Any], value: Any) -> None:
    """Oracle: the sound manifest with one thing changed; the error names the file."""
    raw = json.loads(manifest_bytes(SOUND))
    inner = raw
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(ShardError, match=r"train-000000\.tar\.json: "):
        _parse(raw)


@pytest.mark.parametrize(
    "members",
    [
        {"json": (512, 9), "jpeg": (1536, 10), "txt": (2560, 4)},
        {"txt": (512, 9), "webp": (1536, 10)},
        {"jpg": (512, 9), "objects.npy": (1536, 10), "txt": (2560, 0)},
    ],
    ids=str,
)
def test_members_of_foreign_tars_are_read(members: dict[str, tuple[int, int]]) -> None:
    """Oracle: a picture, a json or a txt, in any order, come back as they were written."""
    entry = SampleEntry("a", 4, 3, 7, members)
    data = manifest_bytes(replace(SOUND, samples=(entry,)))
    (got,) = parse_manifest(data, TAR).samples
    assert got == entry and list(got.members) == list(members)
    assert got.extension == next(iter({"jpg", "jpeg", "webp"} & set(members)))


def test_a_sample_is_of_one_piece_and_not_endless() -> None:
    """Oracle: members a gibibyte apart, which a hole in a file gives for nothing, are refused."""
    entry = SampleEntry("a", 4, 3, 7, {"jpg": (512, 9), "json": (1 << 30, 512)})
    sound = replace(SOUND, tar_bytes=1 << 40, samples=(entry,))
    assert parse_manifest(manifest_bytes(sound), TAR).samples == (entry,)
    entry.members["json"] = (1 << 30, 513)
    with pytest.raises(ShardError, match="within 1073741824 bytes"):
        parse_manifest(manifest_bytes(sound), TAR)


def test_a_manifest_is_not_endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: one byte over the bound, as bytes and as file; at the bound it is read."""
    data = manifest_bytes(SOUND)
    tar = tmp_path / TAR.name
    manifest_path(tar).write_bytes(data)
    monkeypatch.setattr(manifests, "MAX_MANIFEST_BYTES", len(data))
    assert parse_manifest(data, tar) == read_manifest(tar) == SOUND
    monkeypatch.setattr(manifests, "MAX_MANIFEST_BYTES", len(data) - 1)
    for read in (lambda: parse_manifest(data, tar), lambda: read_manifest(tar)):
        with pytest.raises(ShardError, match="split the shard"):
            read()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"samples":' * 100_000,
    ],
    ids=range(7),
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, data: bytes) -> None:
    """Oracle: files that are no manifest, deep nesting included; is_done says no, and raises
    not."""
    tar = tmp_path / TAR.name
    tar.write_bytes(bytes(4096))
    manifest_path(tar).write_bytes(data)
    with pytest.raises(ShardError):
        read_manifest(tar)
    assert not is_done(tar, {"teacher": "1"})


def test_done_needs_manifest_and_tar_of_its_size(tmp_path: Path) -> None:
    """Oracle: the cases one after the other."""
    tar = tmp_path / TAR.name
    fingerprint = {"teacher": "1"}
    assert not is_done(tar, fingerprint)
    manifest_path(tar).write_bytes(manifest_bytes(SOUND))
    assert not is_done(tar, fingerprint)
    tar.write_bytes(bytes(4095))
    assert not is_done(tar, fingerprint)
    tar.write_bytes(bytes(4096))
    assert is_done(tar, fingerprint)
    assert not is_done(tar, {"teacher": "2"})
    with pytest.raises(ShardError, match="run the stage"):
        read_manifest(tmp_path / "other.tar")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a nested json."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])


@settings(max_examples=120, deadline=None, derandomize=True)
@given(place=st.integers(0, 1000), value=JSON, remove=st.booleans())
def test_any_change_parses_or_is_a_shard_error(place: int, value: Any, remove: bool) -> None:
    """Oracle: one value of the sound manifest replaced or removed; no other exception comes."""
    raw = copy.deepcopy(json.loads(manifest_bytes(SOUND)))
    places = list(_places(raw))
    container, key = places[place % len(places)]
    if remove:
        del container[key]
    else:
        container[key] = value
    try:
        _parse(raw)
    except ShardError:
        pass


@pytest.mark.parametrize(
    "where", [("failures", 0, "reason"), ("notes", 0, "key"), ("fingerprint", "teacher")]
)
def test_texts_can_be_written_again(where: tuple[str | int, ...]) -> None:
    """Oracle: half of a surrogate pair, which JSON can spell and UTF-8 cannot, is refused."""
    raw = json.loads(manifest_bytes(SOUND))
    place = raw
    for step in where[:-1]:
        place = place[step]
    place[where[-1]] = "\ud800"
    with pytest.raises(ShardError, match="surrogates not allowed"):
        _parse(raw)


def test_looked_at_lazily_samples_are_the_same() -> None:
    """Oracle: the manifest that was looked at as a whole."""
    data = manifest_bytes(SOUND)
    lazy = parse_manifest(data, TAR, lazily=True)
    assert list(lazy.samples) == list(parse_manifest(data, TAR).samples)
    assert replace(lazy, samples=SOUND.samples) == SOUND and lazy.num_ok == 2


@pytest.mark.parametrize(
    "odd",
    [
        {"key": "a.b"},
        {"crc32": -1},
        {"width": 0},
        {"members": {"jpg": [0, 10]}},
        {"members": 3},
        {"members": {"jpg": [1536, 10], "json": [4000, 900]}},
        {"members": {"pyd": [0, 1]}},
        {"members": {"jpg": [1536, 600], "json": [2000, 9]}},
    ],
)
def test_looked_at_lazily_an_odd_sample_is_refused_when_asked_for(odd: dict[str, Any]) -> None:
    """Oracle: the other sample is given, this one is a ShardError."""
    raw = json.loads(manifest_bytes(SOUND))
    raw["samples"][1] |= odd
    lazy = parse_manifest(json.dumps(raw).encode(), TAR, lazily=True)
    assert lazy.samples[0] == SOUND.samples[0]
    with pytest.raises(ShardError):
        lazy.samples[1]


@pytest.mark.parametrize("samples", [3, {"0": {}}, "ab", None])
def test_looked_at_lazily_samples_are_a_list(samples: Any) -> None:
    """Oracle: ShardError at once for what is none."""
    raw = json.loads(manifest_bytes(SOUND)) | {"samples": samples}
    with pytest.raises(ShardError):
        parse_manifest(json.dumps(raw).encode(), TAR, lazily=True)
