"""The score matrix of retrieval: every picture with every text, by the matching head.

The CNN runs once for each picture. Texts are tokenized and embedded once, and those of similar
length share a batch, so that there is little padding. Only the fusion runs for each pair.

Letters: M texts, P pairs of a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from stages.freed_memory import keep_freed_memory
from stages.student.fusion.one_picture import FirstInputs
from stages.student.network import Student
from stages.student.outputs import Cells
from stages.student.processor import StudentProcessor
from stages.transfer.example import Example
from stages.transfer.fixed_blocks import fixed_blocks

PAIRS_PER_PASS = 32
"""Pairs of one pass, always as many, so that no score depends on what was asked beside it."""
LENGTH_STEP = 4
"""Texts of a pass are padded to a multiple of so many word pieces."""
KEPT_BYTES = 1 << 29
"""Of memory at most, for what the fusion makes of texts before it sees a picture; of those beyond
it is computed anew for each picture."""
BEHIND = -1e4
"""Added to the score of what is on no shortlist."""
RowScorer = Callable[[tuple[Example, ...]], dict[str, list[float]]]


class TextPasses:
    """Texts as word pieces, in passes of fixed shape."""

    def __init__(
        self, student: Student, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]
    ) -> None:
        self._max_length = student.config.max_tokens
        encoded = tokenizer(list(texts), truncation=True, max_length=self._max_length)["input_ids"]
        self._lengths = [len(pieces) for pieces in encoded]
        self._pad_id = student.pad_id
        self._tokens = pad_sequence(
            [torch.tensor(pieces) for pieces in encoded],
            batch_first=True,
            padding_value=self._pad_id,
        ).to(student.device)

    @property
    def num(self) -> int:
        """Texts."""
        return len(self._lengths)

    def of(self, numbers: Sequence[int] | None = None) -> list[tuple[list[int], torch.Tensor]]:
        """Some texts, by default all, the shortest first: for each pass the numbers of the first
        rows, and word pieces [P, T], the rows after those being repeats."""
        blocks = fixed_blocks(
            self._lengths,
            num_rows=PAIRS_PER_PASS,
            length_step=LENGTH_STEP,
            max_length=self._max_length,
            of=numbers,
        )
        return [(list(b.members), b.cut(self._tokens, self._pad_id)) for b in blocks]


class AllTexts:
    """All texts of a matrix, to be scored with one picture after the other by the matching head.
    The student has to stay as it is, in evaluation mode. From then on malloc keeps freed memory in
    the process (`stages.freed_memory`), as passes allocate the same tensors again."""

    def __init__(self, student: Student, passes: TextPasses) -> None:
        self._student = student
        self._num = passes.num
        self._passes = passes.of()
        self._kept: dict[int, FirstInputs] = {}
        keep_freed_memory()

    @torch.no_grad()
    def log_odds(self, cells: Cells) -> torch.Tensor:
        """Of all texts on one picture: [M], on the CPU."""
        found = torch.empty(self._num)
        has_inputs = self._student.can_match_inputs
        if has_inputs:
            picture = self._student.inputs_of_picture(cells)
        for number, (places, tokens) in enumerate(self._passes):
            if has_inputs:
                odds = _log_odds(self._student.match_inputs(self._inputs(number), picture))
            else:
                odds = log_odds(self._student, cells, tokens)
            found[places] = odds[: len(places)].cpu()
        return found

    def _inputs(self, number: int) -> FirstInputs:
        if number in self._kept:
            return self._kept[number]
        inputs = self._student.inputs_of_texts(self._passes[number][1])
        if sum(kept.num_bytes for kept in self._kept.values()) < KEPT_BYTES:
            self._kept[number] = inputs
        return inputs


def row_scorer(student: Student, processor: StudentProcessor, texts: Sequence[str]) -> RowScorer:
    """A function from a picture's example to its row: the log odds of all texts [M], by its id."""
    known = AllTexts(student, TextPasses(student, processor.tokenizer, texts))

    @torch.no_grad()
    def row(group: tuple[Example, ...]) -> dict[str, list[float]]:
        return {e.id: known.log_odds(_cells(student, processor, e)).tolist() for e in group}

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
    the contrastive head's logits plus those log odds; what is on neither list is ranked behind
    (`BEHIND`).

    Which pairs these are depends on all pictures, so the CNN runs twice a picture: here, and in the
    function. Raises ValueError where the student has no contrastive head.
    """
    known = TextPasses(student, processor.tokenizer, texts)
    vectors = torch.empty(len(texts), student.config.itc_size)
    for places, padded in known.of():
        vectors[places] = student.embed_texts(padded)[: len(places)].float().cpu()
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
            for places, padded in known.of(listed[number].nonzero()[:, 0].tolist()):
                scores[places] += log_odds(student, cells, padded)[: len(places)].cpu()
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


def log_odds(student: Student, cells: Cells, tokens: torch.Tensor) -> torch.Tensor:
    """The matching head's, of texts [P, T] on one picture: [P]."""
    picture = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    return _log_odds(student.match(cells, picture=picture, input_ids=tokens))


def _log_odds(logits: torch.Tensor) -> torch.Tensor:
    logits = logits.float()
    return logits[:, 1] - logits[:, 0]


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
