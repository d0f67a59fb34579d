"""The same samples as shards of ours, of stock webdataset, and for Energon and mosaic streaming.

Each format is written by a function of a folder and samples, and read by one that gives an
iterator over `Row`s, so that all are asked for the same: the picture's bytes, the json and the
objects' arrays. Energon and mosaic are imported in their own functions; those raise ImportError
where they are not installed.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import webdataset
from PIL import Image

from sharding.format.catalog import write_catalog
from sharding.format.schema import OBJECTS, Sample, object_dtype
from sharding.reading.stream import DatasetSource, ShardStream
from sharding.writing.shard_writer import write_shard

WIDTH_PX, HEIGHT_PX = 480, 360
NUM_OBJECTS = 36
DTYPE = object_dtype(feature_size=2048, num_top=5, attributes=False)
FIELDS = DTYPE.names or ()
SAMPLES_A_SHARD, MICRO_BATCH_SIZE = 100, 32
GRAIN = 39  # noise that makes a picture of this size about 100 kB
JPEG_QUALITY = 90


class Row(NamedTuple):
    """A sample as read, the picture still encoded. objects: an array by the name of each field,
    in a structured array or a dict."""

    key: str
    picture: bytes
    info: dict[str, Any]
    objects: Any


# What reads a folder: a fresh pass over all its samples, once each, in the order of the format.
Reader = Callable[[], Iterator[Row]]


def make_samples(num_samples: int, seed: int) -> list[Sample]:
    """Samples of 36 x 2048 features and a noisy picture of about 100 kB, all different."""
    random = np.random.default_rng(seed)
    return [_make_sample(number, random) for number in range(num_samples)]


def _make_sample(number: int, random: np.random.Generator) -> Sample:
    objects = np.zeros(NUM_OBJECTS, DTYPE)
    objects["box"] = np.sort(random.random((NUM_OBJECTS, 2, 2)) * 360, axis=1).reshape(-1, 4)
    objects["score"] = np.sort(random.random(NUM_OBJECTS))[::-1]
    objects["label"] = random.integers(0, 1600, NUM_OBJECTS)
    objects["feature"] = random.random((NUM_OBJECTS, 2048), np.float32)
    objects["top_label"] = random.integers(0, 1600, (NUM_OBJECTS, 5))
    objects["top_score"] = random.random((NUM_OBJECTS, 5))
    captions = [f"caption {caption} of picture {number}, of some length" for caption in range(5)]
    return Sample(
        key=f"{number:08d}",
        image=_make_picture(random),
        extension="jpg",
        info={"captions": captions, "width": WIDTH_PX, "height": HEIGHT_PX, "image_id": number},
        objects=objects,
    )


def _make_picture(random: np.random.Generator) -> bytes:
    """A smooth picture with grain over it, as JPEG."""
    coarse = Image.fromarray(random.integers(GRAIN, 256 - GRAIN, (6, 8, 3), np.uint8))
    smooth = np.asarray(coarse.resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BICUBIC))
    grain = random.integers(-GRAIN, GRAIN, smooth.shape, np.int16)
    pixels = (smooth + grain).clip(0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "jpeg", quality=JPEG_QUALITY)
    return out.getvalue()


def write_ours(folder: Path, samples: Sequence[Sample]) -> None:
    """Shards with manifests, checksums and a catalog, each file synced and renamed."""
    splits = {}
    for number, first in enumerate(range(0, len(samples), SAMPLES_A_SHARD)):
        tar = folder / f"train-{number:06d}.tar"
        write_shard(tar, samples[first : first + SAMPLES_A_SHARD], fingerprint={"benchmark": "1"})
        splits[tar.name] = "train"
    write_catalog(folder, kind="objects", splits=splits, metadata={})


def open_ours(folder: Path) -> ShardStream:
    """Our stream over a folder of write_ours."""
    return ShardStream(
        [DatasetSource(folder)],
        seed=0,
        micro_batch_size=MICRO_BATCH_SIZE,
        window_num_shards=4,
        shape_step_px=64,
    )


def read_ours(folder: Path) -> Iterator[Row]:
    """An epoch in the stream's shuffled order, all checks on, opening and manifests included."""
    stream = open_ours(folder)
    for position in range(stream.num_micro_batches):
        yield from rows_of(stream[position])


def rows_of(samples: Sequence[Sample]) -> list[Row]:
    """A micro-batch of ours as rows."""
    return [Row(sample.key, sample.image, sample.info, sample.objects) for sample in samples]


def as_one_npy(sample: Sample) -> dict[str, Any]:
    """A sample for webdataset's writer: the members that ours have."""
    return {
        "__key__": sample.key,
        "jpg": sample.image,
        "json": sample.info,
        OBJECTS: sample.objects,
    }


def as_npy_a_field(sample: Sample) -> dict[str, Any]:
    """A sample for webdataset's writer: a member for each field of the objects."""
    fields = {f"{name}.npy": array for name, array in fields_of(sample.objects).items()}
    return {"__key__": sample.key, "jpg": sample.image, "json": sample.info, **fields}


def fields_of(objects: Any) -> dict[str, np.ndarray]:
    """A structured array [O] as one contiguous array a field."""
    return {name: np.ascontiguousarray(objects[name]) for name in FIELDS}


def write_stock(folder: Path, samples: Sequence[Mapping[str, Any]], *, synced: bool) -> None:
    """Tars of webdataset's ShardWriter; `synced` as ours are, else left to the kernel."""
    pattern = str(folder / "train-%06d.tar")
    post = _sync if synced else None
    with webdataset.ShardWriter(pattern, maxcount=SAMPLES_A_SHARD, verbose=0, post=post) as writer:
        for sample in samples:
            writer.write(sample)


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_stock(folder: Path) -> webdataset.WebDataset:
    """Webdataset's own decoding over a folder of write_stock, without any shuffling."""
    tars = sorted(str(tar) for tar in folder.glob("*.tar"))
    return webdataset.WebDataset(tars, shardshuffle=False).decode().map(_stock_row)


def _stock_row(sample: Mapping[str, Any]) -> Row:
    objects = sample.get(OBJECTS)
    if objects is None:
        objects = {name: sample[f"{name}.npy"] for name in FIELDS}
    return Row(sample["__key__"], sample["jpg"], sample["json"], objects)


def read_stock(folder: Path) -> Iterator[Row]:
    """An epoch in the order of the tars; webdataset checks nothing."""
    return iter(open_stock(folder))


def open_energon(folder: Path, num_samples: int) -> Reader:
    """Prepares a folder of write_stock (one npy) for Energon; what reads it on, pass after pass.

    Its savable loader in this process; ImportError where Energon is not installed.
    """
    from megatron import energon

    @energon.edataclass
    class Cooked(energon.Sample):
        row: Any

    @energon.stateless
    def cook(sample: dict[str, Any]) -> Cooked:
        objects = np.lib.format.read_array(io.BytesIO(sample[OBJECTS]))
        row = Row(sample["__key__"], sample["jpg"], json.loads(sample["json"]), objects)
        return Cooked(**energon.basic_sample_keys(sample), row=row)

    class Encoder(energon.DefaultTaskEncoder):
        decoder = None
        cookers = [energon.Cooker(cook)]

    tars = sorted(tar.name for tar in folder.glob("*.tar"))
    with contextlib.redirect_stdout(io.StringIO()):
        energon.CrudeWebdataset.prepare_dataset(
            folder, tars, split_parts_ratio=[("train", 1.0)], workers=1
        )
    (folder / ".nv-meta" / "dataset.yaml").write_text(
        "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
    )
    dataset = energon.get_train_dataset(
        folder,
        worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=0),
        batch_size=None,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        task_encoder=Encoder(),
    )
    warnings.filterwarnings("ignore", message="'pin_memory'")
    endless = iter(energon.get_savable_loader(dataset))
    return lambda: (sample.row for sample in itertools.islice(endless, num_samples))


def write_mosaic(folder: Path, samples: Sequence[Sample]) -> None:
    """Shards of mosaic's MDSWriter, instead of those in `folder`; ImportError where mosaic
    streaming is not installed."""
    from streaming import MDSWriter

    fields = {name: f"ndarray:{DTYPE[name].base.name}" for name in FIELDS}
    columns = {"key": "str", "picture": "bytes", "info": "json", **fields}
    shutil.rmtree(folder, ignore_errors=True)
    with MDSWriter(columns=columns, out=str(folder)) as writer:
        for sample in samples:
            writer.write(
                {
                    "key": sample.key,
                    "picture": sample.image,
                    "info": sample.info,
                    **fields_of(sample.objects),
                }
            )


def open_mosaic(folder: Path) -> Reader:
    """What reads a folder of write_mosaic, shuffled, pass after pass.

    Its shared memory goes when this process ends, its lock files stay in `folder`.
    """
    from streaming import StreamingDataset

    with mock.patch.object(tempfile, "tempdir", str(folder)):
        dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=MICRO_BATCH_SIZE)

    def read() -> Iterator[Row]:
        for sample in dataset:
            objects = {name: sample[name] for name in FIELDS}
            yield Row(sample["key"], sample["picture"], sample["info"], objects)

    return read
