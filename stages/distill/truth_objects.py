"""The true boxes as a perfect teacher: what a student could learn from a detector without
faults."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from boxless.errors import BoxlessError
from sharding.format.catalog import read_catalog
from sharding.format.schema import Failure, Sample, object_dtype
from sharding.writing.atomic import sha256_of


class TruthObjects:
    """An ObjectSource: the boxes and labels of the source itself, each with score 1.

    Features are one zero, as no net looked: leave `pretrain.omvm.feature_weight` at 0. A picture
    without true boxes has no objects. Raises ValueError where the image shards name no labels.
    """

    attribute_names: Sequence[str] = ()
    feature_size = 1
    num_top = 1

    def __init__(self, images: Path) -> None:
        self.label_names: list[str] = list(read_catalog(images).metadata.get("label_names", []))
        if not self.label_names:
            raise BoxlessError(
                f"distill.teacher: got truth, but the source of {images} has no boxes; expected "
                "ingest.instances, or another teacher"
            )
        self._rows = {name: row for row, name in enumerate(self.label_names)}
        self.fingerprint = sha256_of(["truth", self.label_names])

    def objects(self, samples: Iterable[Sample]) -> Iterator[np.ndarray | Failure]:
        """The true objects of each sample, in the source's order."""
        for sample in samples:
            yield self._objects(sample)

    def _objects(self, sample: Sample) -> np.ndarray:
        truth = sample.info.get("truth", {})
        known = [
            (box, self._rows[label])
            for box, label in zip(truth.get("boxes", []), truth.get("labels", []))
            if label in self._rows
        ]
        dtype = object_dtype(feature_size=self.feature_size, num_top=self.num_top, attributes=False)
        objects = np.zeros(len(known), dtype)
        for row, (box, label) in zip(objects, known):
            row["box"], row["score"], row["label"] = box, 1, label
            row["top_label"], row["top_score"] = label, 1
        return objects
