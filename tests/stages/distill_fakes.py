"""A teacher that looks at sums of pixels only, and small image shards, for the distill tests."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sharding.format.catalog import write_catalog
from sharding.format.schema import Failure, Sample, object_dtype
from sharding.writing.shard_writer import write_shard
from stages.detector.ops.resize import Prepared
from stages.distill.inference.pipeline import InferencePipeline
from stages.distill.object_source import Detector

POISON = (255, 0, 255)
SHARDS = {
    "heldout-000000.tar": "heldout",
    "train-000000.tar": "train",
    "train-000001.tar": "train",
}


class FakeTeacher:
    """Objects are a pure function of the picture; a picture of one colour, POISON, raises."""

    label_names = ["circle", "square", "traffic light,stop light"]
    attribute_names = ["red", "blue", "light blue"]
    feature_size = 6
    num_top = 2

    def __init__(self, fingerprint: str = "fake/1") -> None:
        self.fingerprint = fingerprint
        self.batch_sizes: list[int] = []

    def prepare(self, picture: torch.Tensor) -> Prepared:
        height, width = picture.shape[:2]
        return Prepared(picture, height, width, (1.0, 1.0))

    def detect(self, prepared: list[Prepared]) -> list[np.ndarray]:
        self.batch_sizes.append(len(prepared))
        return [self.look(picture.pixels.numpy()) for picture in prepared]

    def look(self, picture: np.ndarray) -> np.ndarray:
        """0 to 4 objects of a uint8 [H, W, 3] picture, scores from 0.9 down in steps of 0.2."""
        if (picture == POISON).all():
            raise RuntimeError("cannot look at <object at 0x7f00dead>\nsecond line")
        assert picture.dtype == np.uint8 and picture.shape[2] == 3
        total = int(picture.sum())
        dtype = object_dtype(feature_size=self.feature_size, num_top=self.num_top, attributes=True)
        objects = np.zeros(total % 5, dtype)
        height, width = picture.shape[:2]
        for row, item in enumerate(objects):
            item["box"] = (0, 0, width - row, height - row)
            item["score"] = item["top_score"][0] = 0.9 - 0.2 * row
            item["label"] = item["top_label"][0] = (total + row) % 3
            item["attribute"] = (total // 3 + row) % 3
            item["attribute_score"] = 0.5
            item["feature"] = picture.mean((0, 1)).repeat(2) / 255 + row
        return objects


def source_of(
    detector: Detector, *, batch_size: int = 2, num_decoders: int = 2
) -> InferencePipeline:
    """A detector put to work."""
    return InferencePipeline(detector, batch_size=batch_size, num_decoders=num_decoders)


def picture_bytes(pixels: np.ndarray, extension: str) -> bytes:
    """uint8 [H, W, 3] as a file, without loss where `extension` is "png"."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, {"jpg": "JPEG", "png": "PNG"}[extension])
    return out.getvalue()


def make_sample(key: str, captions: list[str], random: np.random.Generator) -> Sample:
    """A sample of an image shard: a noisy picture of 8 to 16 pixels a side, JPEG or PNG."""
    height, width = (int(side) for side in random.integers(8, 17, 2))
    pixels = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
    extension = "png" if random.random() < 0.5 else "jpg"
    info = {"captions": captions, "width": width, "height": height, "image_id": key, "source": "t"}
    return Sample(key=key, image=picture_bytes(pixels, extension), extension=extension, info=info)


def write_images(folder: Path, shards: Mapping[str, Sequence[Sample | Failure]]) -> None:
    """Image shards and their catalog, as ingest leaves them; the splits are those of SHARDS."""
    for tar, results in shards.items():
        write_shard(folder / tar, results, fingerprint={"ingest": "test"})
    write_catalog(
        folder,
        kind="images",
        splits={tar: SHARDS[tar] for tar in shards},
        metadata={"label_names": [], "attribute_names": [], "source": "t"},
    )


def plain_shards(seed: int = 0) -> dict[str, list[Sample]]:
    """Three shards of 3 to 5 sound samples with one or two captions each."""
    random = np.random.default_rng(seed)
    sentences = [
        "a red circle above two light blue squares",
        "Stop lights!",
        "nothing to see",
        "",
        "the big blue circle and a square",
    ]
    shards: dict[str, list[Sample]] = {}
    for number, tar in enumerate(SHARDS):
        shards[tar] = [
            make_sample(
                f"{number}-{i}",
                [str(s) for s in random.choice(sentences, int(random.integers(1, 3)))],
                random,
            )
            for i in range(3 + number)
        ]
    return shards


def tree_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes, hidden ones too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
