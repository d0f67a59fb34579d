"""The interface of a source of objects, such as a teacher.

An `ObjectSource` gives the objects of samples, however it comes by them: by files that others left
(`precomputed/`), or by a detector: `inference/pipeline.py` makes an ObjectSource of a `Detector`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from sharding.format.schema import Failure
from stages.detector.ops.resize import Prepared
from stages.distill.shard_samples import ShardSamples


class Named(Protocol):
    """What a teacher says of itself."""

    @property
    def label_names(self) -> Sequence[str]:
        """By number, synonyms with commas between, without background."""

    @property
    def attribute_names(self) -> Sequence[str]:
        """By number; none of a teacher without attributes."""

    @property
    def feature_size(self) -> int:
        """The length of an object's feature."""

    @property
    def num_top(self) -> int:
        """The length of a soft label."""

    @property
    def fingerprint(self) -> str:
        """Identifies weights and settings, all that shapes the objects."""


class ObjectSource(Named, Protocol):
    """A teacher as `label.py` needs it."""

    def objects(self, samples: ShardSamples) -> Iterator[np.ndarray | Failure]:
        """A result a sample, in their order: an array of `sharding.format.schema.object_dtype`,
        rows by falling score and boxes in pixels of the original picture, or why there is none.

        Samples are read in the caller's thread, in any order and ahead of the results.
        """


class Detector(Named, Protocol):
    """A teacher that runs on pictures; what it finds in one depends on no other."""

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of what the net gets for a picture of that size, in pixels. Pictures of
        one canvas may go into `detect` together."""

    def prepare(self, picture: Tensor) -> Prepared:
        """What `detect` takes, of a picture uint8 RGB [H, W, 3]. Called in several threads at once,
        while another one is in `detect`."""

    def detect(self, prepared: list[Prepared]) -> list[np.ndarray]:
        """An array as ObjectSource.objects gives for each of some pictures, one or more, all of
        one canvas.

        Called in one thread at a time. Memory that ran out is signalled by MemoryError,
        torch.OutOfMemoryError, or a RuntimeError that says so.
        """
