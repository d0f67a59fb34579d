"""Tests of sharding.reading.webdataset_adapter: stages of stock webdataset over our stream, and
their own samples."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

from sharding.format.catalog import write_catalog
from sharding.format.manifest import read_manifest
from sharding.format.schema import Sample, ShardError
from sharding.reading.dataset_source import DatasetSource
from sharding.reading.stream import ShardStream
from sharding.reading.webdataset_adapter import WebdatasetAdapter
from sharding.tools.index import index_folder
from sharding.writing.shard_writer import write_shard

COUNTS = [5, 7, 3]


def _picture(index: int, kind: str) -> bytes:
    rng = np.random.default_rng(index)
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (8, 12, 3), np.uint8)).save(out, kind)
    return out.getvalue()


@pytest.fixture
def folder(tmp_path: Path, make_sample: Callable[..., Sample]) -> Path:
    splits, first = {}, 0
    for shard, count in enumerate(COUNTS):
        name = f"train-{shard:06d}.tar"
        samples = [make_sample(index) for index in range(first, first + count)]
        kinds = {"jpg": "JPEG", "png": "PNG"}
        write_shard(
            tmp_path / name,
            [
                replace(sample, image=_picture(first + place, kinds[sample.extension]))
                for place, sample in enumerate(samples)
            ],
            fingerprint={},
        )
        splits[name], first = "train", first + count
    write_catalog(tmp_path, kind="objects", splits=splits, metadata={})
    return tmp_path


def _stream(folder: Path) -> ShardStream:
    return ShardStream(
        [DatasetSource(folder)], seed=5, micro_batch_size=2, window_num_shards=2, shape_step_px=64
    )


def _samples(folder: Path, *, rank: int = 0, world_size: int = 1) -> WebdatasetAdapter:
    stream = _stream(folder)
    num = stream.num_micro_batches
    return WebdatasetAdapter(stream, start=num, rank=rank, world_size=world_size, end=2 * num)


def _stock(folder: Path) -> webdataset.WebDataset:
    return webdataset.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False)


def _plain(value: Any) -> Any:
    """Something that == compares: of pictures and arrays their bytes."""
    if isinstance(value, Image.Image):
        return value.mode, value.size, value.tobytes()
    if hasattr(value, "dtype"):  # numpy's or torch's
        return str(value.dtype), tuple(value.shape), np.asarray(value).tobytes()
    return value


def _by_key(samples: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {
        sample["__key__"]: {
            name: _plain(value) for name, value in sample.items() if not name.startswith("__")
        }
        for sample in samples
    }
    assert len(found) == len(samples)
    return found


@pytest.mark.parametrize("decoders", [[], ["pil"], ["rgb8"], ["torchrgb"]], ids=str)
def test_they_are_webdatasets_own_samples(folder: Path, decoders: list[str]) -> None:
    """Oracle: stock webdataset on the same tars, raw and through its decoders."""
    ours, theirs = _samples(folder), _stock(folder)
    if decoders:
        ours, theirs = ours.decode(*decoders), theirs.decode(*decoders)
    got = _by_key(list(ours))
    assert got == _by_key(list(theirs)) and len(got) == sum(COUNTS)


def test_the_url_is_the_shard(folder: Path) -> None:
    """Oracle: stock webdataset's own, for each key."""
    urls = {sample["__key__"]: sample["__url__"] for sample in _stock(folder)}
    assert {sample["__key__"]: sample["__url__"] for sample in _samples(folder)} == urls


@pytest.mark.parametrize(
    "loader",
    [
        lambda data: DataLoader(data, batch_size=None, num_workers=2),
        lambda data: webdataset.WebLoader(data, batch_size=None, num_workers=2),
        lambda data: DataLoader(data, batch_size=None),
    ],
    ids=["two workers", "WebLoader", "no workers"],
)
def test_stages_follow_in_workers(folder: Path, loader: Callable[..., Any]) -> None:
    """Oracle: keys and captions of stock webdataset, from two ranks of workers, each once."""
    seen = [
        pair
        for rank in range(2)
        for pair in loader(
            _samples(folder, rank=rank, world_size=2)
            .decode("pil")
            .map(_with_size)
            .to_tuple("__key__", "json")
        )
    ]
    assert Counter(key for key, _ in seen) == Counter(s["__key__"] for s in _stock(folder))
    for key, info in seen:
        assert info["captions"] == [f"número {int(key.removeprefix('picture-'))}"]
        assert list(info["size"]) == [12, 8]


def _with_size(sample: dict[str, Any]) -> dict[str, Any]:
    picture = sample["jpg"] if "jpg" in sample else sample["png"]
    return {**sample, "json": {**sample["json"], "size": picture.size}}


def test_batches_of_webdataset(folder: Path) -> None:
    """Oracle: the stream itself: the same keys in its order, in batches of another size."""
    stream = _stream(folder)
    num = stream.num_micro_batches
    order = [sample.key for position in range(num, 2 * num) for sample in stream[position]]
    batches = list(_samples(folder).to_tuple("__key__").batched(4))
    assert [key for (keys,) in batches for key in keys] == order
    assert [len(keys) for (keys,) in batches] == [4, 4, 4, 3]


def test_damage_is_not_passed_over(folder: Path) -> None:
    """Oracle: ShardError with shard and key, where stock webdataset gives the sample."""
    tar = folder / "train-000001.tar"
    data = bytearray(tar.read_bytes())
    data[read_manifest(tar).samples[1].members["objects.npy"][0] + 9] ^= 1
    tar.write_bytes(data)
    assert len(list(_stock(folder))) == sum(COUNTS)
    with pytest.raises(ShardError, match="train-000001.tar: sample picture-000.*CRC-32"):
        list(_samples(folder))


def test_a_share_that_does_not_exist_is_refused_at_once(folder: Path) -> None:
    """Oracle: rank 2 of 2."""
    with pytest.raises(ValueError, match="start, rank, world_size"):
        WebdatasetAdapter(_stream(folder), start=0, rank=2, world_size=2)


@pytest.fixture
def img2dataset(tmp_path: Path) -> Path:
    """Tars as img2dataset makes them, by webdataset's writer: jpg, txt and its json."""
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"{shard:05d}.tar")) as writer:
            for number in range(4):
                key = f"{shard:05d}{number:04d}"
                caption = f"a caption of {key}"
                info = {
                    "caption": caption,
                    "url": f"http://x/{key}",
                    "key": key,
                    "status": "success",
                    "error_message": None,
                    "width": 12,
                    "height": 8,
                    "original_width": 100,
                    "original_height": 70,
                    "exif": "{}",
                    "sha256": "0" * 64,
                }
                writer.write(
                    {
                        "__key__": key,
                        "jpg": _picture(number, "JPEG"),
                        "txt": caption,
                        "json": json.dumps(info).encode(),
                    }
                )
    return tmp_path


def test_img2datasets_tars_come_out_as_webdataset_reads_them(img2dataset: Path) -> None:
    """Oracle: stock webdataset on the same tars; as our samples, the captions that were written."""
    index_folder(img2dataset)
    assert _by_key(list(_samples(img2dataset))) == _by_key(list(_stock(img2dataset)))
    stream = _stream(img2dataset)
    ours = [s for position in range(stream.num_micro_batches) for s in stream[position]]
    for sample in ours:
        assert sample.info["captions"] == [f"a caption of {sample.key}"]
        assert (sample.info["width"], sample.info["height"]) == (12, 8)
        assert (sample.info["image_id"], sample.extension) == (sample.key, "jpg")
        assert sample.objects is None and sample.info["url"] == f"http://x/{sample.key}"
    assert len({sample.key for sample in ours}) == len(ours) == 8
