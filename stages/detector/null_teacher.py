"""A teacher that finds no objects, for pictures without boxes to train one from.

A run goes through with it: its object arrays have no rows, so OMVM and PRA have no targets,
and the student learns from pictures and captions alone.
"""

from __future__ import annotations

import numpy as np
import torch

from sharding.format.schema import object_dtype
from stages.detector.ops.resize import Prepared


class NullTeacher:
    """Stands where a `Teacher` would; `detect` finds no object in any picture."""

    label_names: list[str] = []
    attribute_names: list[str] = []
    feature_size = 1
    num_top = 1

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """That of the picture as it is."""
        return height, width

    def prepare(self, picture: torch.Tensor) -> Prepared:
        """A picture [H, W, 3] as it is."""
        height, width = picture.shape[:2]
        return Prepared(picture, height, width, (1.0, 1.0))

    def detect(self, prepared: list[Prepared]) -> list[np.ndarray]:
        """An array of no objects for each picture."""
        dtype = object_dtype(feature_size=self.feature_size, num_top=self.num_top, attributes=False)
        return [np.zeros(0, dtype) for _ in prepared]
