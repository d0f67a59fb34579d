"""Image shards whose pictures have true boxes, for training and scoring a teacher.

The truth is the `truth` of a sample's json: boxes, labels and perhaps attributes, by name. It is
read once, at the start, by the offsets of the manifests, and kept as small arrays; pictures are
read when asked for.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from boxless.errors import BoxlessError
from sharding.format.catalog import read_catalog
from sharding.reading.local_store import LocalStore
from sharding.reading.sample_reader import OpenTar, make_sample
from sharding.reading.shard_reader import ShardReader, check_result
from sharding.reading.watchdog import StatusBoard
from stages.picture import open_picture

NO_ATTRIBUTE = -1  # of a box whose attribute is unknown
NUM_MANIFESTS = 64


class Truth(NamedTuple):
    """The true objects of one picture."""

    boxes: Tensor  # [G, 4], pixels
    labels: Tensor  # [G], int64
    attributes: Tensor  # [G], int64, NO_ATTRIBUTE where unknown


class Place(NamedTuple):
    """Where a picture with a truth lies, and its size in pixels."""

    shard: int
    sample: int
    width: int
    height: int


class LabeledPictures:
    """The pictures of one split that have a truth (which may be that there is no object)."""

    def __init__(
        self, images: Path, split: str, *, label_names: list[str], attribute_names: list[str]
    ) -> None:
        """Reads the truth of every picture of `split` ("train" or "heldout") of `images`; a split
        without shards has no pictures.

        Raises ShardError where shards are missing or damaged, ValueError where a truth names a
        label or attribute that the names do not hold.
        """
        self._labels = {name: index for index, name in enumerate(label_names)}
        self._attributes = {name: index for index, name in enumerate(attribute_names)}
        store = LocalStore(images)
        entries = [shard for shard in read_catalog(images).shards if shard.split == split]
        self._shards = ShardReader(
            [(store, entry) for entry in entries], num_manifests=NUM_MANIFESTS, board=StatusBoard()
        )
        self.places: list[Place] = []
        self._truths: list[Truth] = []
        for shard, entry in enumerate(entries):
            self._read_truths(shard, OpenTar(images / entry.tar))

    def __len__(self) -> int:
        return len(self.places)

    @property
    def num_shards(self) -> int:
        """Shards of the split, with and without labelled pictures."""
        return len(self._shards)

    def key(self, index: int) -> str:
        """The key of a picture."""
        place = self.places[index]
        return self._shards.manifest(place.shard).samples[place.sample].key

    def truth(self, index: int) -> Truth:
        """The true objects of a picture, in its own pixels."""
        return self._truths[index]

    def picture(self, index: int) -> Tensor:
        """A picture, upright, uint8 RGB [H, W, 3]. Raises ShardError where its bytes have
        changed."""
        place = self.places[index]
        (result,) = self._shards.read(
            [(place.shard, place.sample)], lambda raw: make_sample(raw.members, raw.entry)
        )
        return torch.from_numpy(np.array(open_picture(check_result(result).image)))

    def _read_truths(self, shard: int, tar: OpenTar) -> None:
        manifest = self._shards.manifest(shard)
        tar.check_size(manifest)
        for number, entry in enumerate(manifest.samples):
            truth = json.loads(tar.read(*entry.members["json"])).get("truth")
            if truth is not None:
                self._truths.append(self._parse(truth, entry.key))
                self.places.append(Place(shard, number, entry.width, entry.height))

    def _parse(self, truth: dict[str, Any], key: str) -> Truth:
        """The truth of picture `key` as tensors; boxes without area are left out."""
        names = truth.get("attributes") or [None] * len(truth["boxes"])
        rows = [
            row
            for row, (x0, y0, x1, y1) in enumerate(truth["boxes"])
            if x1 > x0 and y1 > y0 and all(map(math.isfinite, (x0, y0, x1, y1)))
        ]
        boxes = [truth["boxes"][row] for row in rows]
        labels = [_number(truth["labels"][row], self._labels, "label", key) for row in rows]
        attributes = [
            NO_ATTRIBUTE
            if names[row] is None or not self._attributes
            else _number(names[row], self._attributes, "attribute", key)
            for row in rows
        ]
        return Truth(
            torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
            torch.tensor(labels, dtype=torch.long),
            torch.tensor(attributes, dtype=torch.long),
        )


def _number(name: str, numbers: dict[str, int], what: str, key: str) -> int:
    """The number of a label or attribute; ValueError if the catalog does not know its name."""
    if name not in numbers:
        raise BoxlessError(
            f"picture {key}: got a truth with the {what} {name!r}, expected one of the "
            f"{len(numbers)} {what}_names of the images' catalog; run ingest again"
        )
    return numbers[name]
