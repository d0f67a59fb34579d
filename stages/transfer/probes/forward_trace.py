"""Traces one forward pass: match score, attention, and predictions of masked parts.

Letters: L layers, A heads, T word pieces, W words, C cells, S = T + C tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sharding.format.schema import Sample
from stages.student.attention_trace import AttentionTrace, rollout, trace_attention
from stages.student.outputs import Cells
from stages.transfer.evaluation.grounding import phrase_heat, pixels_per_cell
from stages.transfer.predictor import Predictor

NUM_GUESSES = 5


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word, or a special token as [CLS], which covers no characters: its `text`, its characters
    `start` to `end` (exclusive), and its pieces `first` to `last` (exclusive)."""

    text: str
    start: int
    end: int
    first: int
    last: int

    @property
    def is_special(self) -> bool:
        """Whether the tokenizer added it."""
        return self.start == self.end


@dataclass(frozen=True, kw_only=True)
class ForwardTrace:
    """What a student makes of a picture and a text.

    `match` is the probability that it belongs together; `cell_px` width and height of a cell in
    pixels of the original picture; `inside` bool [C], false for cells that it does not attend to.
    """

    words: list[Word]
    tokens: list[str]
    attention_trace: AttentionTrace
    cells: Cells
    cell_px: tuple[float, float]
    match: float

    @property
    def attention(self) -> torch.Tensor:
        """[L, A, S, S], as in AttentionTrace."""
        return self.attention_trace.attention[0]

    @property
    def inside(self) -> torch.Tensor:
        """bool [C]."""
        return self.cells.inside[0]

    def of_words(self, attention: torch.Tensor) -> torch.Tensor:
        """What words attend to: [..., S, S] -> [W, ..., S], the mean over each word's pieces."""
        return torch.stack([attention[..., w.first : w.last, :].mean(dim=-2) for w in self.words])

    def rollout(self) -> torch.Tensor:
        """Attention of words through all layers: [W, S]."""
        return self.of_words(rollout(self.attention))

    def meaning(self, predictor: Predictor, start: int, end: int) -> torch.Tensor | None:
        """Which cells the characters `start` to `end` (exclusive) mean, by the alignment head:
        [C], sums to 1. None where the text was cut before them."""
        pieces = torch.zeros(len(self.tokens), dtype=torch.bool)
        for word in self.words:
            if not word.is_special and word.start < end and word.end > start:
                pieces[word.first : word.last] = True
        if not pieces.any():
            return None
        hidden = self.attention_trace.hidden
        return phrase_heat(predictor, hidden.text[0], hidden.cells[0], self.inside, pieces)


@torch.no_grad()
def trace_forward(predictor: Predictor, sample: Sample, text: str) -> ForwardTrace:
    """Run the student on a sample's picture and a text; a text that is too long is cut."""
    ids, offsets = predictor.read([text])
    cells = predictor.cells(sample)
    watched = trace_attention(
        predictor.student, cells, picture=torch.zeros(1, dtype=torch.long), tokens=ids
    )
    logits = predictor.student.itm_head(watched.hidden.text[:, 0])
    tokens = list(predictor.tokenizer.convert_ids_to_tokens(ids[0].tolist()))
    width, height = pixels_per_cell(predictor, sample).tolist()
    return ForwardTrace(
        words=words_of(tokens, offsets[0].tolist(), text),
        tokens=tokens,
        attention_trace=watched,
        cells=cells,
        cell_px=(width, height),
        match=float(logits[0].softmax(dim=0)[1]),
    )


def words_of(tokens: Sequence[str], offsets: Sequence[Sequence[int]], text: str) -> list[Word]:
    """Words put together from word pieces: one that begins with ## continues the last one."""
    words: list[Word] = []
    for number, (token, (start, end)) in enumerate(zip(tokens, offsets)):
        if token.startswith("##") and words and words[-1].end == start < end:
            begun = words.pop()
            start, first = begun.start, begun.first
        else:
            first = number
        said = text[start:end] if start < end else token
        words.append(Word(text=said, start=start, end=end, first=first, last=number + 1))
    return words


@torch.no_grad()
def guesses(
    predictor: Predictor, inside: ForwardTrace, text: str
) -> dict[int, list[tuple[str, float]]]:
    """For each word of one piece, by its place among the words: what the student would put there
    if it were masked, with probabilities, the likeliest first. A [MASK] is masked already."""
    ids, _ = predictor.read([text])
    places = [
        (number, word.first)
        for number, word in enumerate(inside.words)
        if not word.is_special and word.last == word.first + 1
    ]
    if not places:
        return {}
    pieces = torch.tensor([piece for _, piece in places])
    rows = torch.arange(len(places))
    hidden_ids = ids.repeat(len(places), 1)
    hidden_ids[rows, pieces] = predictor.tokenizer.mask_token_id
    picture = torch.zeros(len(places), dtype=torch.long)
    hidden = predictor.student.fuse(inside.cells, picture=picture, input_ids=hidden_ids)
    logits = predictor.student.mlm_head(
        hidden.text[rows, pieces], predictor.student.word_embeddings
    )
    best = logits.float().softmax(dim=-1).topk(min(NUM_GUESSES, logits.shape[-1]), dim=-1)
    return {
        number: list(zip(predictor.tokenizer.convert_ids_to_tokens(found), shares))
        for (number, _), found, shares in zip(places, best.indices.tolist(), best.values.tolist())
    }


def attention_example(predictor: Predictor, sample: Sample) -> dict:
    """For the report: where [CLS] looks through all layers, where each word of a caption looks in
    the last, heads averaged, and what its phrases mean. Heats are [C] and sum to 1.

    The caption is the first that is true of the picture; the first, where none is or it is unknown.
    """
    captions = sample.info["captions"]
    truths = sample.info.get("truth", {}).get("captions", [])
    number = truths.index(True) if True in truths else 0
    caption = captions[number]
    inside = trace_forward(predictor, sample, caption)
    num_text = len(inside.tokens)
    last = inside.of_words(inside.attention[-1].mean(dim=0))[:, num_text:]
    every: list[list[dict]] = sample.info.get("phrases") or []
    phrases = every[number] if number < len(every) else []
    meant = [(p, inside.meaning(predictor, p["start"], p["end"])) for p in phrases]
    return {
        "key": sample.key,
        "caption": caption,
        "match": round(inside.match, 4),
        "rows": inside.cells.rows,
        "columns": inside.cells.columns,
        "cell_px": list(inside.cell_px),
        "whole": _heat(inside.rollout()[0, num_text:]),
        "words": [
            {
                "start": word.start,
                "end": word.end,
                "share": round(float(row.sum()), 4),
                "heat": _heat(row),
            }
            for word, row in zip(inside.words, last)
            if not word.is_special
        ],
        "phrases": [
            {"start": p["start"], "end": p["end"], "heat": _heat(heat)}
            for p, heat in meant
            if heat is not None
        ],
    }


def _heat(row: torch.Tensor) -> list[float]:
    """A row [C] as shares of its sum, short enough for JSON."""
    return [round(v, 4) for v in (row / row.sum().clamp(min=1e-12)).tolist()]
