"""The interface of the formats: a picture's record, and the errors of broken ones.

N: objects of a picture, D: values of a feature, C: classes, background left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

from boxless.errors import BoxlessError
from stages.distill.precomputed.index import Index, Place


class FeaturesError(BoxlessError):
    """Features as a whole are not what the recipe says: a wrong path, file or setting.

    `text` begins with the field of distill.features at fault.
    """

    def __init__(self, text: str) -> None:
        super().__init__(f"distill.features.{text}")


class RowError(Exception):
    """What a file says of one picture cannot be used. The message is the reason, in one line."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The objects of one picture, numbers as they are in the file, rows in its order.

    id: the picture's, as the file spells it.
    boxes: [N, 4] x0, y0, x1, y1 in pixels of the picture that the features were made from; in
        shares of its sides (0 to 1) where `are_shares`.
    size_px: (width, height) of that picture, None where the file does not say.
    features: [N, D]; None where the file has none.
    labels: [N] places among the label names. scores: [N] of that label.
    probabilities: [N, C]; None where only the best class is known.
    attributes: [N] places among the attribute names, -1 for none; None where the file has none.
    attribute_scores: [N], with `attributes`.
    """

    id: str
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    features: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    attributes: np.ndarray | None = None
    attribute_scores: np.ndarray | None = None
    size_px: tuple[int, int] | None = None
    are_shares: bool = False

    def says_as(self, other: Record) -> bool:
        """Whether both say the same to the bit, however they spell their id."""
        return all(
            _equal(getattr(self, field.name), getattr(other, field.name))
            for field in fields(self)
            if field.name != "id"
        )


def _equal(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return a is b if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else a == b


class Reader(Protocol):
    """An opened file, or files, of one format."""

    is_row_a_picture: bool
    """A row has all of a picture's objects, so two rows of an id are one too many; else a row is
    one object."""

    @property
    def index(self) -> Index:
        """The places of all ids."""

    @property
    def fingerprint(self) -> str:
        """Identifies the content of the files."""

    def id_at(self, place: Place) -> str:
        """The id at a place as the file spells it, cut short where it is long."""

    def read(self, places: Sequence[Place]) -> Record:
        """The record of a picture from its places; RowError where they say nothing valid."""
