"""Stock webdataset reads our shards with no code of ours, and so does numpy without pickles."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from sharding.format.schema import Sample
from sharding.writing.shard_writer import write_shard


def _with_picture(sample: Sample) -> Sample:
    size = (sample.info["width"], sample.info["height"])
    out = io.BytesIO()
    Image.new("RGB", size, (200, 10, 30)).save(out, {"jpg": "JPEG", "png": "PNG"}[sample.extension])
    return replace(sample, image=out.getvalue())


def test_stock_webdataset_reads_and_decodes_a_shard(
    tmp_path: Path, make_sample: Callable[..., Sample]
) -> None:
    """Oracle: the samples written: keys, pictures by PIL, json, objects by numpy."""
    samples = [_with_picture(make_sample(index)) for index in range(6)]
    tar = tmp_path / "train-000000.tar"
    write_shard(tar, samples, fingerprint={})
    raw = list(webdataset.WebDataset(str(tar), shardshuffle=False))
    decoded = list(webdataset.WebDataset(str(tar), shardshuffle=False).decode("pil"))
    for sample, got, seen in zip(samples, raw, decoded, strict=True):
        assert got["__key__"] == sample.key
        members = {name for name in got if not name.startswith("__")}
        assert members == {sample.extension, "json", "objects.npy"}
        assert got[sample.extension] == sample.image
        assert json.loads(got["json"]) == seen["json"] == sample.info
        loaded = np.load(io.BytesIO(got["objects.npy"]), allow_pickle=False)
        assert sample.objects is not None
        assert loaded.dtype == sample.objects.dtype
        assert loaded.tobytes() == seen["objects.npy"].tobytes() == sample.objects.tobytes()
        assert seen[sample.extension].size == (sample.info["width"], sample.info["height"])


def test_the_tar_ends_as_tars_end(tmp_path: Path, make_sample: Callable[..., Sample]) -> None:
    """Oracle: POSIX: whole blocks of 512 bytes, the last two zero, ustar headers."""
    tar = tmp_path / "train-000000.tar"
    write_shard(tar, [make_sample(1)], fingerprint={})
    data = tar.read_bytes()
    assert len(data) % tarfile.BLOCKSIZE == 0 and data[-1024:] == bytes(1024)
    assert data[257:265] == b"ustar\x0000"
