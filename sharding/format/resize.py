"""The size of a picture after resizing, by one rule for training, use and the order of samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from boxless.errors import BoxlessError


@dataclass(frozen=True, kw_only=True)
class Resize:
    """The shorter side becomes `shorter_px`, or less where the longer would exceed `longer_px`;
    proportions are kept (Faster R-CNN's rule, arXiv 1506.01497, which both papers use with 600 and
    1000). Raises ValueError for sizes below 1."""

    shorter_px: int
    longer_px: int

    def __post_init__(self) -> None:
        if self.shorter_px < 1 or self.longer_px < 1:
            raise BoxlessError(
                f"shorter_px, longer_px: got {self.shorter_px}, {self.longer_px}, "
                "expected at least 1"
            )

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) after resizing, at least 1 each."""
        scale = min(self.shorter_px / min(width, height), self.longer_px / max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))

    def sizes(self, sizes: np.ndarray) -> np.ndarray:
        """`size` of many: int [N, 2] -> int64 [N, 2], to the same pixel."""
        sides = sizes.astype(np.float64)
        scale = np.minimum(self.shorter_px / sides.min(axis=1), self.longer_px / sides.max(axis=1))
        # Both this and Python's round take a half to the even neighbour.
        return np.maximum(1, np.rint(sides * scale[:, None])).astype(np.int64)
