"""What the page of `boxless inspect` shows of one example: words, phrases, and their maps.

Letters: L layers, A heads, E entries (words, then phrases), C cells, S tokens, M maps an entry:
through all layers, then of each layer the mean and its heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pipeline.pages.student.inputs import Example
from pipeline.pages.thumbnails import Reduced, reduced
from stages.distill.text.phrases import Phrase
from stages.student.attention_trace import rollout
from stages.transfer.predictor import Predictor
from stages.transfer.probes.forward_trace import ForwardTrace, guesses, trace_forward

LONGEST_PX = 640
"""The longest side of the pictures in the page."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A word or a phrase of the text. `guesses`: what the student would put there if it were
    hidden, with probabilities; empty for phrases and for words of several pieces."""

    text: str
    is_special: bool = False
    is_phrase: bool = False
    guesses: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class View:
    """What the page needs of an example.

    `attention` [M, E, C], shares of an entry's attention, and `meaning` [E, C], the alignment
    head's heat; rows of zeros for special tokens, which mean no place. `kinds` names the M maps.
    """

    key: str
    text: str
    entries: list[Entry]
    kinds: list[str]
    attention: torch.Tensor
    meaning: torch.Tensor
    rows: int
    columns: int
    cell_px: tuple[float, float]
    match: float
    is_cut: bool
    picture: Reduced


def view_of(
    predictor: Predictor, example: Example, chunk: Callable[[Sequence[str]], list[list[Phrase]]]
) -> View:
    """Run the student on an example; `chunk` finds the phrases of texts. Raises ShardError on a
    picture that cannot be decoded."""
    text = example.text
    inside = trace_forward(predictor, example.sample, text)
    guessed = guesses(predictor, inside, text)
    known = [word for word in inside.words if not word.is_special]
    end = known[-1].end if known else 0
    phrases = [
        (
            phrase,
            [
                n
                for n, word in enumerate(inside.words)
                if not word.is_special and word.start < phrase.end and word.end > phrase.start
            ],
        )
        for phrase in chunk([text])[0]
    ]
    several = [(phrase, words) for phrase, words in phrases if len(words) > 1]
    entries = [
        Entry(text=word.text, is_special=word.is_special, guesses=tuple(guessed.get(n, ())))
        for n, word in enumerate(inside.words)
    ]
    entries += [Entry(text=phrase.text, is_phrase=True) for phrase, _ in several]
    spans = [(w.start, w.end) for w in inside.words] + [(p.start, p.end) for p, _ in several]
    return View(
        key=example.sample.key,
        text=text,
        entries=entries,
        kinds=kinds_of(*inside.attention.shape[:2]),
        attention=_attention(inside, [words for _, words in several]),
        meaning=_meaning(predictor, inside, spans),
        rows=inside.cells.rows,
        columns=inside.cells.columns,
        cell_px=inside.cell_px,
        match=inside.match,
        is_cut=end < len(text.rstrip()),
        picture=reduced(example.sample.image, longest_px=LONGEST_PX),
    )


def kinds_of(num_layers: int, num_heads: int) -> list[str]:
    """Names of the M maps, in their order."""
    kinds = ["through all layers"]
    for layer in range(1, num_layers + 1):
        kinds.append(f"layer {layer}, mean of heads")
        kinds += [f"layer {layer}, head {head}" for head in range(1, num_heads + 1)]
    return kinds


def _attention(inside: ForwardTrace, phrases: Sequence[Sequence[int]]) -> torch.Tensor:
    """What entries attend to, of cells only: [M, E, C]; for a phrase the mean over its words."""
    attention = inside.attention
    heads = torch.cat([attention.mean(dim=1, keepdim=True), attention], dim=1).flatten(0, 1)
    every = torch.cat([rollout(attention)[None], heads])
    words = inside.of_words(every).transpose(0, 1)[..., len(inside.tokens) :]
    return torch.cat([words, *(words[:, own].mean(dim=1, keepdim=True) for own in phrases)], dim=1)


def _meaning(
    predictor: Predictor, inside: ForwardTrace, spans: Sequence[tuple[int, int]]
) -> torch.Tensor:
    """[E, C]."""
    nothing = torch.zeros(len(inside.inside))
    found = (inside.meaning(predictor, *span) if span[0] < span[1] else None for span in spans)
    return torch.stack([nothing if heat is None else heat for heat in found])
