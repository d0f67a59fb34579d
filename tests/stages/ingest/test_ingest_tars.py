"""Tars as people have them; oracle: what stock webdataset reads of the same tar is read or counted,
and what it passes over is counted."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset
from ingest_corpora import encoded, notes, reasons, samples

from sharding.format.catalog import Catalog
from sharding.format.schema import ShardError
from sharding.tools.index import index_folder, index_tar
from stages.ingest.config import IngestConfig
from stages.ingest.run import ingest
from stages.ingest.sources.source import SourceError

Members = list[tuple[str, bytes]]


def pair(key: str, form: str = "jpg") -> Members:
    """A picture and its caption."""
    kind = {"jpg": "JPEG", "webp": "WEBP"}[form]
    return [(f"{key}.{form}", encoded(kind)), (f"{key}.txt", b"a cat")]


def write(tar: Path, members: Members, links: dict[str, tuple[bytes, str]] | None = None) -> None:
    """A tar of files, and of links {name: (type, target)} behind the first member."""
    tar.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(tar, "w", format=tarfile.GNU_FORMAT) as out:
        for number, (name, data) in enumerate(members):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
            for link, (kind, target) in (links or {}).items() if number == 0 else ():
                info = tarfile.TarInfo(link)
                info.type, info.linkname = kind, target
                out.addfile(info)


def run(tmp_path: Path, **fields: Any) -> Catalog:
    config = IngestConfig(
        source="webdataset", root=str(tmp_path / "in"), heldout_fraction=0.0, **fields
    )
    return ingest(config, seed=0, out=tmp_path / "out")


def stock_keys(tar: Path) -> list[str]:
    """The keys of the whole samples that stock webdataset reads."""
    data = webdataset.WebDataset(str(tar), shardshuffle=False, empty_check=False)
    return [one["__key__"] for one in data if "txt" in one and len(one) > 4]


def test_a_tar_that_is_gone_is_counted(tmp_path: Path) -> None:
    """A link to a blob that was not fetched: one failed input that names it, not silence."""
    write(tmp_path / "in/00000.tar", pair("a"))
    os.symlink("../blobs/1", tmp_path / "in/00001.tar")
    catalog = run(tmp_path)
    (reported,) = reasons(tmp_path / "out", catalog).values()
    assert reported == [
        "missing tar: 00001.tar is a link that points nowhere; add the tar, or remove its name"
    ]
    with pytest.raises(ShardError, match="00001.tar, no file or a link that points nowhere"):
        index_folder(tmp_path / "in")


def test_resource_forks_do_not_part_samples(tmp_path: Path) -> None:
    """macOS' tar puts ._NAME before each NAME; stock webdataset passes over them."""
    tar = tmp_path / "in/a.tar"
    write(
        tar,
        [m for name, data in pair("0") + pair("1") for m in ((f"._{name}", b"x"), (name, data))],
    )
    catalog = run(tmp_path)
    assert sorted(samples(tmp_path / "out", catalog)) == stock_keys(tar) == ["0", "1"]
    assert catalog.metadata["dropped"] == {"members of tars whose names have no key": 4}
    assert [entry.key for entry in index_tar(tar).samples] == ["0", "1"]


def test_links_are_left_out_and_counted(tmp_path: Path) -> None:
    """Hard and symbolic ones, with long names too; all that follows is read."""
    tar = tmp_path / "in/a.tar"
    links = {
        "0.hard": (tarfile.LNKTYPE, "0.jpg"),
        "0.soft": (tarfile.SYMTYPE, "x" * 150),
        "d/" + "n" * 120: (tarfile.SYMTYPE, "0.jpg"),
    }
    write(tar, pair("0") + pair("1"), links)
    catalog = run(tmp_path)
    assert sorted(samples(tmp_path / "out", catalog)) == stock_keys(tar) == ["0", "1"]
    assert catalog.metadata["dropped"] == {"links in tars": 3}
    assert [entry.key for entry in index_tar(tar).samples] == ["0", "1"]


def test_keys_that_begin_anew_in_each_tar(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The screen offers the option that takes all of them."""
    for name in ("a", "b"):
        write(tmp_path / f"in/{name}.tar", pair("0") + pair("1"))
    assert len(samples(tmp_path / "out", run(tmp_path))) == 2
    assert "2 keys come several times" in capsys.readouterr().out
    catalog = run(tmp_path, prefix_keys_by_tar=True)
    assert len(samples(tmp_path / "out", catalog)) == 4 and not reasons(tmp_path / "out", catalog)


def test_webp_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    """As `boxless index` reads them."""
    members = [pair("0", "webp")[0], ("0.json", b'\xef\xbb\xbf{"caption": "a dog"}')]
    write(tmp_path / "in/a.tar", members)
    (sample,) = samples(tmp_path / "out", run(tmp_path)).values()
    assert sample.extension == "webp" and sample.info["captions"] == ["a dog"]
    (entry,) = index_tar(tmp_path / "in/a.tar").samples
    assert entry.key == "0"


def test_members_apart_and_dotted_keys_say_the_fix(tmp_path: Path) -> None:
    """All pictures before all captions; names with a dot in the key."""
    pairs = [pair(str(i)) for i in range(3)]
    write(tmp_path / "in/a.tar", [p for p, _ in pairs] + [t for _, t in pairs])
    with pytest.raises(SourceError, match="tar --sort=name"):
        run(tmp_path)
    write(tmp_path / "in/a.tar", pair("img_0.5_1") + pair("img_0.5_2"))
    with pytest.raises(SourceError, match="a key ends at the first dot"):
        run(tmp_path)


def test_devices_and_fifos_are_left_out_and_counted(tmp_path: Path) -> None:
    """Oracle: stock webdataset, which reads all that follows."""
    tar = tmp_path / "in/a.tar"
    others = {"0.dev": (tarfile.CHRTYPE, ""), "0.pipe": (tarfile.FIFOTYPE, "")}
    write(tar, pair("0") + pair("1"), others)
    catalog = run(tmp_path)
    assert sorted(samples(tmp_path / "out", catalog)) == stock_keys(tar) == ["0", "1"]
    assert catalog.metadata["dropped"] == {"devices and fifos in tars": 2}
    manifest = index_tar(tar)
    assert [entry.key for entry in manifest.samples] == ["0", "1"]
    assert [note.reason for note in manifest.notes] == [
        "left out: a character device",
        "left out: a fifo",
    ]


def test_a_member_that_comes_twice_is_noted(tmp_path: Path) -> None:
    """Oracle: the last one, as tar unpacks it, and a note of its sample."""
    first, text = pair("0")
    write(tmp_path / "in/a.tar", [first, text, ("0.txt", b"a dog")])
    catalog = run(tmp_path)
    (sample,) = samples(tmp_path / "out", catalog).values()
    assert sample.info["captions"] == ["a dog"]
    reason = "member several times: txt, of which the last is taken"
    assert notes(tmp_path / "out", catalog) == [("0", reason)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig"])
def test_text_of_other_encodings_is_read_as_in_files(encoding: str, tmp_path: Path) -> None:
    """As Windows writes it; JSON also without a byte order mark. Oracle: the text."""
    (first, _), (second, _) = pair("0"), pair("1")
    described = '{"caption": "a caf\u00e9"}'.encode(encoding)
    text = "a caf\u00e9".encode("utf-16" if encoding == "utf-16-le" else encoding)
    write(tmp_path / "in/a.tar", [first, ("0.json", described), second, ("1.txt", text)])
    found = samples(tmp_path / "out", run(tmp_path))
    assert [one.info["captions"] for one in found.values()] == [["a caf\u00e9"]] * 2


def test_where_nothing_is_left_the_reasons_are_named(tmp_path: Path) -> None:
    """Names that are refused, and inputs that are no samples."""
    write(tmp_path / "in/a.tar", pair("/data/0"))
    with pytest.raises(SourceError, match="2 x members of tars whose names are refused.*/data/0"):
        run(tmp_path)
    write(tmp_path / "in/a.tar", pair("0")[:1])
    with pytest.raises(ShardError, match="got 0 samples.*a.tar: 0: no caption: got jpg"):
        index_folder(tmp_path / "in")
