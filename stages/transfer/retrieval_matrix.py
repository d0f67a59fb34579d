"""The matrix of a retrieval test set: every picture with every text, by the matching head.

A picture goes through the CNN once, texts are tokenized once and sorted by length so that little is
padding, and only the fusion runs a pair. Letters: M texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from stages.student.network import Student
from stages.student.processor import StudentProcessor
from stages.transfer.example import Example

PAIRS_PER_PASS = 256
"""Pairs of one pass; its texts are always the same, so no score depends on machines."""


def row_scorer(
    student: Student, processor: StudentProcessor, texts: Sequence[str]
) -> Callable[[tuple[Example, ...]], dict[str, list[float]]]:
    """A function from a picture's example to its row: the log odds of all texts [M], by its id."""
    tokens = [
        processor.tokenizer(t, truncation=True, max_length=processor.max_tokens) for t in texts
    ]
    pieces = [torch.tensor(encoded["input_ids"]) for encoded in tokens]
    order = sorted(range(len(texts)), key=lambda m: (len(pieces[m]), m))
    passes = [
        (
            order[start : start + PAIRS_PER_PASS],
            torch.nn.utils.rnn.pad_sequence(
                [pieces[m] for m in order[start : start + PAIRS_PER_PASS]],
                batch_first=True,
                padding_value=student.pad_id,
            ).to(student.device),
        )
        for start in range(0, len(order), PAIRS_PER_PASS)
    ]

    @torch.no_grad()
    def row(group: tuple[Example, ...]) -> dict[str, list[float]]:
        found = {}
        for example in group:
            inputs = processor([example.images[0]], [texts[0]])
            cells = student.see(
                inputs["pixels"].to(student.device), inputs["sizes_px"].to(student.device)
            )
            scores = torch.empty(len(texts))
            for places, padded in passes:
                picture = torch.zeros(len(places), dtype=torch.long, device=student.device)
                logits = student.match(cells, picture=picture, tokens=padded).float()
                scores[places] = (logits[:, 1] - logits[:, 0]).cpu()
            found[example.id] = scores.tolist()
        return found

    return row


@dataclass(frozen=True, kw_only=True)
class MatrixPlan:
    """What a full matrix costs. `pairs_per_second` is of one device."""

    num_pictures: int
    num_texts: int
    num_devices: int
    pairs_per_second: float

    @property
    def num_pairs(self) -> int:
        """Fusions."""
        return self.num_pictures * self.num_texts

    @property
    def seconds(self) -> float:
        """Of the whole, the devices sharing pictures."""
        pictures_each = -(-self.num_pictures // self.num_devices)
        return pictures_each * self.num_texts / self.pairs_per_second

    def lines(self) -> Iterable[str]:
        """For people."""
        yield f"CNN passes: {self.num_pictures}, one a picture"
        yield f"fusions:    {self.num_pairs}, one a pair ({self.num_pictures} x {self.num_texts})"
        yield f"devices:    {self.num_devices}, {-(-self.num_pictures // self.num_devices)} pictures each"
        yield f"rate:       {self.pairs_per_second:.0f} pairs a second and device"
        yield f"time:       {self.seconds / 3600:.2f} hours"
