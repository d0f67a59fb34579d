"""Shards for tests of `boxless view`: two objects of known places, phrases of known similarity."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sharding.format.catalog import write_catalog
from sharding.format.schema import Failure, Note, Sample, object_dtype
from sharding.writing.shard_writer import write_shard

NAMES = ["circle", "traffic light,stop light", "moon"]
ATTRIBUTES = ["red", "dark blue,navy"]
ABOUT = {"label_names": NAMES, "attribute_names": ATTRIBUTES, "feature_size": 2, "num_top": 3}
CAPTION = "a red circle by the traffic light under clouds"
GREEN = (0, 255, 0)
"""Of every picture; it is no colour of a box."""


def picture(width: int = 200, height: int = 100) -> bytes:
    """A PNG of one colour."""
    out = io.BytesIO()
    Image.new("RGB", (width, height), GREEN).save(out, "PNG")
    return out.getvalue()


BOXES = ((20, 30, 80, 90), (120, 40, 180, 80))


def objects(boxes: Sequence[Sequence[float]] = BOXES) -> np.ndarray:
    """Objects of labels 0, 1, 2, 0 ... and scores 0.9, 0.8 ..., at those boxes."""
    array = np.zeros(len(boxes), object_dtype(feature_size=2, num_top=3, attributes=True))
    rows = np.arange(len(boxes))
    array["box"] = np.reshape(boxes, (-1, 4))
    array["score"] = 0.9 - 0.1 * rows if len(boxes) < 9 else 0.9 - 0.8 * rows / len(boxes)
    array["label"] = rows % 3
    array["attribute"], array["attribute_score"] = rows % 3 - 1, 0.75
    array["top_label"] = np.stack([rows % 3, (rows + 1) % 3, (rows + 2) % 3], axis=1)
    array["top_score"] = (0.6875, 0.25, 0.0625)
    return array


def info(width: int = 200, height: int = 100, **changes: Any) -> dict[str, Any]:
    """The json: three phrases, like object 1, like object 2, and like none."""
    phrases = [
        {"text": "a red circle", "start": 0, "end": 12, "similarity": [0.7071, 0.0]},
        {"text": "the traffic light", "start": 16, "end": 33, "similarity": [0.25, 1.0]},
        {"text": "clouds", "start": 40, "end": 46, "similarity": [0.0, 0.0]},
    ]
    reported = {
        "captions": [CAPTION],
        "width": width,
        "height": height,
        "image_id": "1",
        "source": "test",
        "phrases": [phrases],
    }
    return {**reported, **changes}


def sample(key: str, **changes: Any) -> Sample:
    """One of those samples; `changes` are fields of Sample."""
    own = {"image": picture(), "extension": "png", "info": info(), "objects": objects()}
    return Sample(key=key, **{**own, **changes})


def folder_of(
    folder: Path,
    *shards: Sequence[Sample | Failure | Note],
    about: dict[str, Any] | None = None,
    kind: str = "objects",
) -> Path:
    """A finished folder with a tar of each; returns it."""
    names = [f"train-{number:06}.tar" for number in range(len(shards))]
    for name, samples in zip(names, shards):
        write_shard(folder / name, samples, fingerprint={})
    splits = dict.fromkeys(names, "train")
    write_catalog(folder, kind=kind, splits=splits, metadata=ABOUT if about is None else about)
    return folder
