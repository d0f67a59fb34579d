"""Which positions of the order each rank reads, and when."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from boxless.errors import BoxlessError


@dataclass(frozen=True)
class Turn:
    """A rank's turn: the position to read, and whether it is padding, which counts for nothing."""

    position: int
    is_padding: bool


def turns(
    start: int, rank: int, world_size: int, *, step_size: int, end: int | None = None
) -> Iterator[Turn]:
    """One rank's turns at the positions from `start` on, below `end` if given, else without end.

    A step is `step_size` positions, whatever the world size; its ranks take them in turn, so rank r
    of R has positions r, r + R, ... of each step. Every rank has ceil(step_size / R) turns a step,
    so no rank waits for another. Turns that find no position left in their step (R does not divide
    step_size, or `end` cuts the last step) are padding: they repeat one of the step's positions,
    so that there is data to go through, and must count for nothing. Step 5 from 10 on, three ranks:

    >>> for rank in range(3):
    ...     own = turns(10, rank, 3, step_size=5, end=15)
    ...     print([(turn.position, turn.is_padding) for turn in own])
    [(10, False), (13, False)]
    [(11, False), (14, False)]
    [(12, False), (10, True)]

    Raises ValueError unless 0 <= rank < world_size, start >= 0 and step_size >= 1.
    """
    if start < 0 or not 0 <= rank < world_size or step_size < 1:
        raise BoxlessError(
            f"start, rank, world_size, step_size: got {start}, {rank}, {world_size}, {step_size}, "
            "expected start >= 0, 0 <= rank < world_size and step_size >= 1"
        )
    return _turns(start, rank, world_size, step_size, end)


def _turns(
    start: int, rank: int, world_size: int, step_size: int, end: int | None
) -> Iterator[Turn]:
    for first in itertools.count(start, step_size):
        num_left = step_size if end is None else min(step_size, end - first)
        if num_left <= 0:
            return
        for place in range(rank, rank + step_size, world_size):
            yield Turn(first + place % num_left, place >= num_left)
