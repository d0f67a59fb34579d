"""Samples and folders of shards for the tests of sharding: small, seeded, uneven on purpose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from sharding.format.catalog import write_catalog
from sharding.format.schema import Failure, Note, Sample, object_dtype
from sharding.writing.shard_writer import write_shard

SHAPES = [(64, 48), (48, 64), (60, 41)]


def _objects(rng: np.random.Generator, num_objects: int) -> np.ndarray:
    array = np.zeros(num_objects, object_dtype(feature_size=8, num_top=3, attributes=True))
    array["box"][:, 2:] = rng.random((num_objects, 2)) * 40
    array["score"] = np.sort(rng.random(num_objects))[::-1]
    array["label"] = rng.integers(0, 10, num_objects)
    array["feature"] = rng.standard_normal((num_objects, 8))
    return array


@pytest.fixture
def make_sample() -> Callable[..., Sample]:
    """make_sample(index, objects=True): the same sample for the same index."""

    def make(index: int, *, objects: bool = True) -> Sample:
        rng = np.random.default_rng(index)
        width, height = SHAPES[index % len(SHAPES)]
        return Sample(
            key=f"picture-{index:05d}",
            image=rng.bytes(200 + index % 700),
            extension="png" if index % 5 == 0 else "jpg",
            info={
                "captions": [f"número {index}"],
                "width": width,
                "height": height,
                "image_id": index,
            },
            objects=_objects(rng, index % 4) if objects else None,
        )

    return make


@pytest.fixture
def make_folder(make_sample: Callable[..., Sample]) -> Callable[..., Path]:
    """make_folder(folder, counts): shards of so many samples each, with a catalog, split train."""

    def make(folder: Path, counts: Sequence[int]) -> Path:
        first = 0
        splits = {}
        for shard, num_samples in enumerate(counts):
            name = f"train-{shard:06d}.tar"
            results: list[Sample | Failure | Note] = [
                *(make_sample(index) for index in range(first, first + num_samples)),
                Failure(key=f"broken {shard}", reason="no picture"),
                Note(key=f"picture-{first:05d}", reason="empty caption"),
            ]
            write_shard(folder / name, results, fingerprint={"test": "1"})
            splits[name] = "train"
            first += num_samples
        write_catalog(folder, kind="objects", splits=splits, metadata={"label_names": ["a", "b"]})
        return folder

    return make
