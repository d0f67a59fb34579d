"""The matrix of a retrieval test set: every picture with every text, by the matching head.

A picture goes through the CNN once, texts are tokenized once and sorted by length so that little is
padding, and only the fusion runs a pair. Letters: M texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from stages.student.network import Cells, Student
from stages.student.processor import StudentProcessor
from stages.transfer.example import Example

PAIRS_PER_PASS = 256
"""Pairs of one pass; its texts are always the same, so no score depends on machines."""
BEHIND = -1e4
"""Added to the score of what is on no shortlist."""
RowScorer = Callable[[tuple[Example, ...]], dict[str, list[float]]]


class _Texts:
    """Texts by length in passes: word pieces [P, T] and the places of each pass in the whole."""

    def __init__(self, student: Student, processor: StudentProcessor, texts: Sequence[str]) -> None:
        tokens = [
            processor.tokenizer(t, truncation=True, max_length=processor.max_tokens) for t in texts
        ]
        self.pieces = [torch.tensor(encoded["input_ids"]) for encoded in tokens]
        self._pad_id, self._device = student.pad_id, student.device

    def passes(self, places: Sequence[int]) -> list[tuple[list[int], torch.Tensor]]:
        """Some texts, the shortest first, in passes."""
        order = sorted(places, key=lambda m: (len(self.pieces[m]), m))
        parts = [
            order[start : start + PAIRS_PER_PASS] for start in range(0, len(order), PAIRS_PER_PASS)
        ]
        return [(part, self._padded(part)) for part in parts]

    def _padded(self, places: Sequence[int]) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(
            [self.pieces[m] for m in places], batch_first=True, padding_value=self._pad_id
        ).to(self._device)


def row_scorer(student: Student, processor: StudentProcessor, texts: Sequence[str]) -> RowScorer:
    """A function from a picture's example to its row: the log odds of all texts [M], by its id."""
    passes = _Texts(student, processor, texts).passes(range(len(texts)))

    @torch.no_grad()
    def row(group: tuple[Example, ...]) -> dict[str, list[float]]:
        found = {}
        for example in group:
            scores = torch.empty(len(texts))
            cells = _cells(student, processor, example)
            for places, padded in passes:
                scores[places] = _log_odds(student, cells, padded)
            found[example.id] = scores.tolist()
        return found

    return row


@torch.no_grad()
def shortlist_scorer(
    student: Student,
    processor: StudentProcessor,
    texts: Sequence[str],
    examples: Sequence[Example],
    *,
    num_best: int,
) -> RowScorer:
    """As `row_scorer`, the matching head running only on pairs whose text is among the `num_best`
    of the picture by the contrastive head, or whose picture is among those of the text. A row is
    the contrastive head's logits plus those log odds; what is on neither list stands behind
    (`BEHIND`).

    Which pairs these are depends on all pictures, so the CNN runs twice a picture: here, and in the
    function. Raises ValueError where the student has no contrastive head.
    """
    known = _Texts(student, processor, texts)
    vectors = torch.empty(len(texts), student.config.itc_size)
    for places, padded in known.passes(range(len(texts))):
        vectors[places] = student.embed_texts(padded).float().cpu()
    pictures = torch.cat(
        [student.embed_pictures(_cells(student, processor, e)).float().cpu() for e in examples]
    )
    contrast = student.compare(vectors.to(student.device), pictures.to(student.device)).T.cpu()
    listed = shortlisted(contrast, num_best)
    row_of = {example.id: number for number, example in enumerate(examples)}

    @torch.no_grad()
    def row(group: tuple[Example, ...]) -> dict[str, list[float]]:
        found = {}
        for example in group:
            number = row_of[example.id]
            scores = contrast[number] + BEHIND * ~listed[number]
            cells = _cells(student, processor, example)
            for places, padded in known.passes(listed[number].nonzero()[:, 0].tolist()):
                scores[places] += _log_odds(student, cells, padded)
            found[example.id] = scores.tolist()
        return found

    return row


def shortlisted(scores: torch.Tensor, num_best: int) -> torch.Tensor:
    """Which pairs of scores [N, M] are among the best of their row or of their column: bool."""
    listed = torch.zeros_like(scores, dtype=torch.bool)
    for axis in (0, 1):
        best = scores.topk(min(num_best, scores.shape[axis]), dim=axis).indices
        listed.scatter_(axis, best, True)
    return listed


def _cells(student: Student, processor: StudentProcessor, example: Example) -> Cells:
    inputs = processor([example.images[0]], [""])
    return student.encode_image(
        inputs["pixel_values"].to(student.device), inputs["sizes_px"].to(student.device)
    )


def _log_odds(student: Student, cells: Cells, tokens: torch.Tensor) -> torch.Tensor:
    """Of texts [P, T] on one picture: [P], on the CPU."""
    picture = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    logits = student.match(cells, picture=picture, input_ids=tokens).float()
    return (logits[:, 1] - logits[:, 0]).cpu()


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
