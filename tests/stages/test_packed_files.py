"""Pictures in tars and in shards, by the path that they would have in a folder."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pretrain_fixtures import toy_samples, write_objects

from stages.packed_files import find_packed
from stages.picture import file_fault, read_picture_file, upright_picture
from stages.transfer.readers.records import ReaderError
from stages.transfer.readers.snli_ve import read_snli_ve
from stages.transfer.readers.vcr import read_vcr


def _jpeg(color: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(out, "JPEG")
    return out.getvalue()


def _tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_a_member_of_a_tar(tmp_path: Path) -> None:
    """Oracle: the bytes that were packed; a page is none, and what is not packed is not there. A
    tar that is written again is indexed again."""
    red, blue = _jpeg("red"), _jpeg("blue")
    tar = _tar(tmp_path / "a.tar", {"./1.jpg": red, "in/2.png": blue, "3.jpg": b"<html>"})
    assert read_picture_file(tar / "1.jpg") == red
    assert read_picture_file(tar / "in" / "2.png") == blue
    assert file_fault(tar / "in" / "2.png") is None
    assert file_fault(tar / "3.jpg") == "not JPEG, PNG or WebP: it is a web page"
    assert file_fault(tar / "4.jpg") == file_fault(tmp_path / "4.jpg") == "not there"
    with pytest.raises(NotADirectoryError):
        read_picture_file(tar / "4.jpg")
    _tar(tmp_path / "a.tar", {"4.jpg": blue, "1.jpg": blue * 2})
    assert read_picture_file(tar / "4.jpg") == blue
    assert len(read_picture_file(tar / "1.jpg")) == 2 * len(blue)


def test_a_damaged_tar_is_named(tmp_path: Path) -> None:
    """Oracle: its name and the byte at which it ends."""
    tar = _tar(tmp_path / "a.tar", {"1.jpg": _jpeg("red")})
    tar.write_bytes(tar.read_bytes()[:700])
    assert "a.tar: byte 0: got '1.jpg'" in str(file_fault(tar / "1.jpg"))


def test_a_sample_of_shards(tmp_path: Path) -> None:
    """Oracle: the pictures that the shards were written from, of both splits; a json is none."""
    samples = list(toy_samples(3, 2))
    folder = write_objects(tmp_path / "shards", samples)
    for sample in samples:
        assert read_picture_file(folder / f"{sample.key}.jpg") == sample.image
        assert file_fault(folder / f"{sample.key}.png") is None
        assert find_packed(folder / f"{sample.key}.json") is None
    assert file_fault(folder / "other.jpg") == "not there"


def test_a_task_reads_its_pictures_from_a_tar(tmp_path: Path) -> None:
    """Oracle: what is read from the same files in a folder, VCR's metadata too; a picture that is
    not in the tar is counted."""
    red = _jpeg("red")
    rows = [
        {"pairID": str(n), "Flickr30K_ID": str(n), "sentence2": "It is.", "gold_label": "neutral"}
        for n in (1, 2)
    ]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tar = _tar(tmp_path / "pictures.tar", {"1.jpg": red})
    with pytest.raises(ReaderError, match=r"dev\.jsonl:2: .*pictures\.tar/2\.jpg is not there"):
        read_snli_ve(tmp_path / "dev.jsonl", tar)
    data = read_snli_ve(tmp_path / "dev.jsonl", tar, max_missing=1)
    assert data.dropped == {"picture missing": 1}
    [image] = data.examples[0].images
    (tmp_path / "1.jpg").write_bytes(red)
    pixels = (np.asarray(upright_picture(path)) for path in (image, tmp_path / "1.jpg"))
    assert np.array_equal(*pixels)
    vcr = {
        "annot_id": "a", "img_fn": "m/a.jpg", "metadata_fn": "m/a.json", "objects": ["person"],
        "question": ["Why", [0]], "answer_choices": [["So"]] * 4, "rationale_choices": [["So"]] * 4,
    }  # fmt: skip
    (tmp_path / "val.jsonl").write_text(json.dumps(vcr) + "\n")
    metadata = b'{"boxes": [[0, 0, 1, 1, 1]], "names": ["person"]}'
    tar = _tar(tmp_path / "vcr.tar", {"m/a.jpg": red, "m/a.json": metadata})
    assert len(read_vcr(tmp_path / "val.jsonl", tar).examples) == 1
