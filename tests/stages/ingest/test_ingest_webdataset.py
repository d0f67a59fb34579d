"""Tars that stock webdataset wrote, whole and damaged; oracle: what was put in, counted by hand."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset
from ingest_corpora import encoded, manifests, notes, reasons, samples

from sharding.format.catalog import Catalog
from stages.ingest.config import IngestConfig
from stages.ingest.run import ingest
from stages.ingest.sources.source import SourceError
from stages.ingest.sources.tar_members import list_members
from stages.ingest.sources.webdataset import WebdatasetSource, split_name


def write_tar(path: Path, entries: list[dict[str, Any]]) -> None:
    """As img2dataset does: webdataset's own writer, a dict a key."""
    path.parent.mkdir(exist_ok=True)
    with webdataset.TarWriter(str(path)) as tar:
        for entry in entries:
            tar.write(entry)


def entry(key: str, caption: str | None = None, **fields: Any) -> dict[str, Any]:
    """An img2dataset sample: KEY.jpg, KEY.txt, KEY.json."""
    text = {} if caption is None else {"txt": caption}
    described = {"caption": caption, "url": f"http://example.org/{key}", "key": key}
    return {"__key__": key, "jpg": encoded(), **text, "json": described, **fields}


def run(tmp_path: Path, **fields: Any) -> Catalog:
    config = IngestConfig(
        source="webdataset", root=str(tmp_path / "in"), heldout_fraction=0.0, **fields
    )
    return ingest(config, seed=0, out=tmp_path / "out")


def test_img2dataset_tars(tmp_path: Path) -> None:
    write_tar(tmp_path / "in/00000.tar", [entry("000000001", "a cat"), entry("000000003", "dog")])
    png = {"__key__": "000010007", "png": encoded("PNG"), "txt": " a bird\n"}
    several = {"__key__": "000010009", "jpeg": encoded(), "json": {"captions": ["x", "", "y"]}}
    write_tar(tmp_path / "in/00001.tar", [png, several])
    (tmp_path / "in/00000.parquet").write_bytes(b"not looked at")
    catalog = run(tmp_path)
    found = samples(tmp_path / "out", catalog)
    assert {key: sample.info["captions"] for key, sample in found.items()} == {
        "000000001": ["a cat"],
        "000000003": ["dog"],
        "000010007": ["a bird"],
        "000010009": ["x", "y"],
    }
    assert found["000000001"].image == encoded() and found["000010007"].extension == "png"
    assert found["000000003"].info == {
        "captions": ["dog"],
        "width": 40,
        "height": 30,
        "image_id": "000000003",
        "source": "webdataset",
        "tar": "00000.tar",
        "described": {"caption": "dog", "url": "http://example.org/000000003", "key": "000000003"},
    }
    assert notes(tmp_path / "out", catalog) == [("000010009", "blank caption: number 1")]


def test_every_faulty_key_has_its_reason(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "in/a.tar",
        [
            entry("good", "fine"),
            entry("silent"),
            entry("blank", "  "),
            {"__key__": "nopicture", "txt": "words", "cls": b"1"},
            {"__key__": "gif", "gif": encoded("GIF"), "txt": "words"},
            entry("broken", "words", jpg=encoded()[:100]),
            {"__key__": "badjson", "jpg": encoded(), "json": b"{"},
            {"__key__": "listjson", "jpg": encoded(), "txt": "words", "json": b"[1]"},
            {"__key__": "latin", "jpg": encoded(), "txt": "caf\xe9".encode("latin-1")},
            {"__key__": "both", "jpg": encoded(), "png": encoded("PNG"), "txt": "words"},
            entry("good", "again"),
        ],
    )
    write_tar(tmp_path / "in/b.tar", [entry("good", "and again")])
    catalog = run(tmp_path)
    reported = reasons(tmp_path / "out", catalog)
    assert reported["good"] == [
        "duplicate key: a.tar good after a.tar good",
        "duplicate key: b.tar good after a.tar good",
    ]
    assert reported["silent"] == reported["blank"] == ["no captions: all 1 are blank or no text"]
    assert reported["nopicture"] == [
        "no picture: a.tar has cls, txt for nopicture, not one of jpg, jpeg, png, webp"
    ]
    assert reported["gif"][0].startswith("not JPEG, PNG or WebP: a.tar has gif, txt")
    assert reported["broken"][0].startswith("broken picture")
    assert reported["badjson"][0].startswith("no captions: unreadable text: badjson.json: ")
    assert reported["latin"][0].startswith("no captions: unreadable text: latin.txt: 'utf-8' codec")
    assert sum(map(len, reported.values())) == 9
    assert sorted(samples(tmp_path / "out", catalog)) == ["both", "good", "listjson"]
    assert sorted(notes(tmp_path / "out", catalog)) == [
        ("both", "another picture: both.png left out"),
        ("listjson", "unreadable text: listjson.json: a JSON list, expected an object"),
    ]
    assert sum(manifest.num_input for manifest in manifests(tmp_path / "out", catalog)) == 12


def tar_of(count: int) -> tuple[bytes, list[tarfile.TarInfo]]:
    """The bytes of a tar of `count` keys (jpg, then txt), and its headers."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number in range(count):
            for extension, data in (("jpg", encoded(seed=number)), ("txt", b"words")):
                info = tarfile.TarInfo(f"{number:03d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        return out.getvalue(), tar.getmembers()


def damaged(kind: str) -> tuple[bytes, int, int]:
    """(bytes of a tar of 5 damaged after `whole` keys, whole, the byte it must name)."""
    data, headers = tar_of(5)
    third = headers[6]  # 003.jpg
    if kind == "inside a picture":
        return data[: third.offset_data + 100], 3, third.offset
    if kind == "at a member's border":
        return data[: third.offset], 3, third.offset
    if kind == "inside a header":
        return data[: third.offset + 100], 3, third.offset + 100
    if kind == "header destroyed":
        return data[: third.offset] + b"\xff" * 512 + data[third.offset + 512 :], 3, third.offset
    end = headers[-1].offset_data + 512
    return data[: end + 1024] + data, 5, end + 1024  # two tars in one file


@pytest.mark.parametrize(
    "kind",
    ["inside a picture", "at a member's border", "inside a header", "header destroyed", "two tars"],
)
def test_a_damaged_tar_gives_what_is_before_the_damage(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    data, num_whole, byte = damaged(kind)
    (tmp_path / "in/00007.tar").write_bytes(data)
    catalog = run(tmp_path)
    keys = [f"{number:03d}" for number in range(num_whole)]
    assert sorted(samples(tmp_path / "out", catalog)) == keys
    (reported,) = [
        reason for several in reasons(tmp_path / "out", catalog).values() for reason in several
    ]
    assert reported.startswith("damaged tar: 00007.tar: ") and f"byte {byte}" in reported


def test_every_cut_of_a_tar_is_noticed(tmp_path: Path) -> None:
    """A prefix yields only whole members and, except for missing padding at the end, a damage."""
    data, headers = tar_of(3)
    end_mark = headers[-1].offset_data + 512
    for cut in range(0, end_mark + 512, 61):
        path = tmp_path / "cut.tar"
        path.write_bytes(data[:cut])
        found = list_members(path)
        assert found.damage, cut
        assert len(found.files) == sum(h.offset_data + h.size <= cut for h in headers), cut
        assert all(len(member.read()) == member.num_bytes for member in found.files)
    path.write_bytes(data)
    assert list_members(path).damage == ""


@pytest.mark.parametrize("name", ["new\nline", "tab\tx", "/etc/a", "a/../../b"])
def test_a_name_that_is_refused_costs_only_its_own_sample(tmp_path: Path, name: str) -> None:
    """Oracle: the samples before and behind it, and its two members counted."""
    entries = [
        entry("a", "one"),
        {"__key__": name, "jpg": encoded(), "txt": "x"},
        entry("z", "two"),
    ]
    write_tar(tmp_path / "in/0.tar", entries)
    source = WebdatasetSource(root=str(tmp_path / "in"), seed=0, heldout_fraction=0.0)
    assert [picture.key for picture in source.pictures()] == ["a", "z"]
    assert dict(source.dropped) == {"members of tars whose names are refused": 2}


def test_a_compressed_tar_is_named(tmp_path: Path) -> None:
    """Oracle: the program in the reason, for each kind of tarfile's."""
    write_tar(tmp_path / "in/good.tar", [entry("good", "fine")])
    for kind in ("gz", "bz2", "xz"):
        with tarfile.open(tmp_path / f"in/{kind}.tar", f"w:{kind}") as tar:
            tar.add(tmp_path / "in/good.tar", "good.tar")
    found = reasons(tmp_path / "out", run(tmp_path))
    for kind, program in {"gz": "gzip", "bz2": "bzip2", "xz": "xz"}.items():
        (reason,) = next(several for key, several in found.items() if key.startswith(kind))
        assert f"compressed by {program}" in reason and f"{program} -d" in reason


def test_captions_of_json_in_every_form(tmp_path: Path) -> None:
    """A text or a list under either name, with a byte order mark, numbers beside them. Oracle: the
    texts, by hand; one that has none says that it is no text."""
    described = {
        "a": {"caption": ["x", "y"]},
        "b": {"captions": "x"},
        "c": {"caption": "x", "captions": ["y", 5, None]},
        "d": b'\xef\xbb\xbf{"caption": "x", "score": NaN}',
        "e": {"caption": 5},
    }
    write_tar(
        tmp_path / "in/0.tar",
        [{"__key__": key, "jpg": encoded(), "json": one} for key, one in described.items()],
    )
    catalog = run(tmp_path)
    found = {k: s.info["captions"] for k, s in samples(tmp_path / "out", catalog).items()}
    assert found == {"a": ["x", "y"], "b": ["x"], "c": ["x", "y"], "d": ["x"]}
    assert reasons(tmp_path / "out", catalog) == {"e": ["no captions: all 1 are blank or no text"]}


def test_no_tar_is_no_crash(tmp_path: Path) -> None:
    """Beside one good tar: an empty one, a compressed one, a text; each one failure."""
    write_tar(tmp_path / "in/good.tar", [entry("good", "fine")])
    (tmp_path / "in/empty.tar").write_bytes(b"")
    (tmp_path / "in/text.tar").write_text("hello" * 500)
    with tarfile.open(tmp_path / "in/zipped.tar", "w:gz") as tar:
        tar.add(tmp_path / "in/good.tar", "good.tar")
    catalog = run(tmp_path)
    reported = [r for several in reasons(tmp_path / "out", catalog).values() for r in several]
    assert len(reported) == 3 and all("byte 0" in reason for reason in reported)
    assert list(samples(tmp_path / "out", catalog)) == ["good"]


def test_wrong_paths_stop_at_once(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="ingest.root is .*not there; expected a folder with"):
        run(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(SourceError, match=r"where no \*.tar is \(it holds a.tar.gz\).*gzip -d"):
        run(tmp_path)


def test_what_only_looks_like_a_tar_is_counted(tmp_path: Path) -> None:
    """Oracle: one file in capitals and one that is compressed, beside a sound tar: a count, and a
    warning with both names."""
    write_tar(tmp_path / "in/0.tar", [entry("a", "one")])
    for name in ("B.TAR", "c.tar.zst", "notes.txt"):
        (tmp_path / "in" / name).write_bytes(b"\x28\xb5\x2f\xfd" if name[0] == "c" else b"x")
    source = WebdatasetSource(root=str(tmp_path / "in"), seed=0, heldout_fraction=0.0)
    assert [picture.key for picture in source.pictures()] == ["a"]
    assert dict(source.dropped) == {"files that are not named *.tar": 2}
    (warning,) = source.warnings
    assert "'B.TAR': rename it" in warning and "'c.tar.zst': it is compressed by zstd" in warning


@pytest.mark.parametrize("name", ["a.jpg", "./a.jpg", "x/y.z/a.seg.PNG", "a", "x.d/.hidden"])
def test_names_are_parted_as_webdataset_does(name: str) -> None:
    theirs = webdataset.tariterators.base_plus_ext(name.removeprefix("./"))
    ours = split_name(name)
    if theirs != (None, None):
        assert ours == (theirs[0], theirs[1].lower())


def test_json_that_only_python_reads_is_kept_writable(tmp_path: Path) -> None:
    """NaN becomes null; a lone surrogate makes the json unreadable, with a note."""
    odd = b'{"caption": "fine", "score": NaN}'
    broken = b'{"caption": "\\ud800"}'
    write_tar(
        tmp_path / "in/a.tar",
        [
            {"__key__": "nan", "jpg": encoded(), "json": odd},
            {"__key__": "half", "jpg": encoded(), "txt": "words", "json": broken},
        ],
    )
    catalog = run(tmp_path)
    found = samples(tmp_path / "out", catalog)
    assert found["nan"].info["described"] == {"caption": "fine", "score": None}
    assert found["half"].info["described"] == {} and json.dumps(found["half"].info["captions"])
    assert [key for key, _ in notes(tmp_path / "out", catalog)] == ["half"]
