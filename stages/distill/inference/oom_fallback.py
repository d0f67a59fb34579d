"""Runs a detector on a batch, in smaller parts where it runs out of memory or fails.

Where a batch fails its pictures go one by one, so that one bad picture takes no other with it;
where memory runs out they go by halves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from sharding.coordination.fatal_errors import ran_out_of_memory
from stages.detector.ops.resize import Prepared
from stages.distill.inference.failures import (
    DistillError,
    TeacherFailure,
    check_device,
    out_of_memory,
    teacher_failure,
)
from stages.distill.object_source import Detector


class Keyed(NamedTuple):
    """A picture as the detector takes it, and its sample's key."""

    key: str
    picture: Prepared


class OomFallback:
    """Gives a result for every picture.

    Once memory ran out in a batch, later batches have at most half its pixels; `log` receives the
    first time.
    """

    def __init__(self, detector: Detector, *, log: Callable[[str], None]) -> None:
        self._detector, self._log = detector, log
        self._most_pixels: int | None = None

    def detect(self, batch: Sequence[Keyed]) -> list[np.ndarray | TeacherFailure]:
        """The objects of some pictures of one canvas, or why a picture has none, in their order.

        Raises DistillError where the device is broken and where the detector does not give one
        array a picture.
        """
        results: list[np.ndarray | TeacherFailure] = []
        height, width = (max(sides) for sides in zip(*(one.picture.size for one in batch)))
        while len(results) < len(batch):
            most = len(batch)
            if self._most_pixels is not None:
                most = max(1, self._most_pixels // (height * width))
            part = batch[len(results) : len(results) + most]
            some = self._attempt(part)
            if some is None:
                self._halve(len(part), (height, width))
            else:
                results += some
        return results

    def _attempt(self, batch: Sequence[Keyed]) -> list[np.ndarray | TeacherFailure] | None:
        """A result a picture; None where memory ran out for several at once."""
        try:
            seen = self._detector.detect([each.picture for each in batch])
        except Exception as error:
            if not ran_out_of_memory(error):
                check_device(batch[0].key, error)
            if len(batch) == 1:
                key = batch[0].key
                if ran_out_of_memory(error):
                    return [out_of_memory(key, "detect")]
                return [teacher_failure(key, "detect", error)]
            if ran_out_of_memory(error):
                return None
        else:
            if len(seen) != len(batch):
                raise DistillError(
                    f"the teacher gave {len(seen)} arrays for {len(batch)} pictures; expected one "
                    "each. Fix the teacher's detect method."
                )
            return list(seen)
        # Out of the block above, whose error kept alive what the batch had filled memory with.
        return [one for each in batch for one in self._attempt([each]) or []]

    def _halve(self, num_pictures: int, size: tuple[int, int]) -> None:
        if self._most_pixels is None:
            self._log(
                f"Memory ran out with {num_pictures} pictures of {size[0]} x {size[1]} pixels at "
                f"once; going on with half as many. distill.batch_size sets how many."
            )
        self._most_pixels = max(num_pictures // 2, 1) * size[0] * size[1]
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
