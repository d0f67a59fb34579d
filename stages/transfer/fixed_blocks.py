"""Texts in blocks of fixed shape, so that what is computed of one is the same to the last digit
whatever is computed beside it.

How a matrix product rounds depends on its shape, and on a CPU on the number of threads that share
it. So every text is padded to a length that is its own alone, goes through the network in a block
of always as many rows, the free ones filled with repeats, and by a number of threads that does not
depend on the machine. Measured on CPUs, in float32, at widths of 128, 384 and 768: with one thread
no number depends on a row's place in its block or on the other rows. Letters: T word pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from stages.cpu_threads import cpu_threads


@dataclass(frozen=True, kw_only=True)
class FixedBlock:
    """`members`, the numbers of some texts, whose padded length is `length`; `rows`, the same and
    repeats of the first of them, always as many."""

    members: tuple[int, ...]
    rows: tuple[int, ...]
    length: int

    def cut(self, tensor: torch.Tensor, fill: int | bool = 0) -> torch.Tensor:
        """The block's rows of all texts' [R, T], padded with `fill` or cut: [B, length]."""
        rows = tensor[list(self.rows), : self.length]
        return F.pad(rows, (0, self.length - rows.shape[1]), value=fill)


def fixed_blocks(
    lengths: Sequence[int],
    *,
    num_rows: int,
    length_step: int,
    max_length: int,
    of: Sequence[int] | None = None,
) -> list[FixedBlock]:
    """Blocks of `num_rows` rows that hold all texts of these lengths once, the shortest first.

    Lengths are padded to a multiple of `length_step`, but not beyond `max_length`, the longest that
    the student reads. of: the numbers of the texts that are wanted (default: all).
    """
    by_length: dict[int, list[int]] = {}
    for number in range(len(lengths)) if of is None else of:
        padded = -(-lengths[number] // length_step) * length_step
        by_length.setdefault(max(lengths[number], min(padded, max_length)), []).append(number)
    blocks = []
    for length, numbers in sorted(by_length.items()):
        for start in range(0, len(numbers), num_rows):
            members = numbers[start : start + num_rows]
            filled = members + members[:1] * (num_rows - len(members))
            blocks.append(FixedBlock(members=tuple(members), rows=tuple(filled), length=length))
    return blocks


def fixed_threads(num_threads: int) -> AbstractContextManager[None]:
    """Compute with so many CPU threads, or, where the recipe leaves that open (0), with one:
    PyTorch's own choice depends on the machine and on the number of ranks."""
    return cpu_threads(num_threads or 1)
