"""Prompts for a zero-shot detector, from a picture's own captions.

Phrases are those of the chunker, found a caption at a time, so that a phrase hangs on its caption
alone. The labels of such a teacher are content words of all captions: of the phrase "a brown dog",
"dog".
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

from boxless.errors import BoxlessError
from stages.detector.transformers_teacher import CaptionLabels
from stages.distill.text.phrases import Chunker, Phrase
from stages.distill.text.words import fold, is_content

BY_PROMPT = "by_prompt"  # the field of an object array with the score of each phrase
OTHER = "thing"  # label of a phrase without a word that is one
NUM_CAPTIONS_KEPT = 4096
DECIMALS = 4


class CaptionPrompts:
    """A Chunker that keeps what it found for the captions of the last pictures."""

    def __init__(self, chunker: Chunker) -> None:
        self.name = f"{chunker.name}, asked for"
        self.fingerprint = f"prompts/1 {chunker.fingerprint}"
        self._chunker = chunker
        self._found: OrderedDict[str, list[Phrase]] = OrderedDict()

    def chunk(self, captions: Sequence[str]) -> list[list[Phrase]]:
        """As Chunker.chunk."""
        return [self._chunk(caption) for caption in captions]

    def of(self, captions: Sequence[str]) -> tuple[str, ...]:
        """The phrases of a picture's captions, each once, in their order."""
        return prompts_of(self.chunk(captions))

    def _chunk(self, caption: str) -> list[Phrase]:
        if caption not in self._found:
            (self._found[caption],) = self._chunker.chunk([caption])
            if len(self._found) > NUM_CAPTIONS_KEPT:
                self._found.popitem(last=False)
        return self._found[caption]


class PromptSimilarity:
    """A Similarity for objects that were detected by phrase; it compares no words."""

    name = "prompts"
    fingerprint = "prompts/1"

    def compare(self, phrases: Sequence[str], objects: np.ndarray) -> list[list[float]]:
        """Similarities of phrases and objects. Raises BoxlessError where the objects do not say
        which phrase found them."""
        raise BoxlessError(f"objects: got no field {BY_PROMPT}, expected it of a prompted teacher")


def prompts_of(phrases: Iterable[Iterable[Phrase]]) -> tuple[str, ...]:
    """The texts of the phrases of some captions, each once, in their order."""
    return tuple(dict.fromkeys(phrase.text for some in phrases for phrase in some))


def similarity_by_prompt(scores: np.ndarray, prompts: Sequence[str]) -> dict[str, list[float]]:
    """By phrase, a value an object: the phrase's score over the best of the object's phrases.

    scores [O, phrases], 0 to 1. An object's own phrase has 1; another that describes it nearly as
    well, of another caption perhaps, nearly 1.
    """
    best = scores.max(axis=1, initial=0.0)
    shares = scores / np.where(best > 0, best, 1.0)[:, None]
    return {
        text: [round(float(value), DECIMALS) for value in column]
        for text, column in zip(prompts, shares.T)
    }


def caption_labels(captions: Iterable[str], *, most: int) -> CaptionLabels:
    """The `most` commonest content words of captions as labels, after `OTHER`, in their commonest
    spelling. A phrase has the label of its last word that is one."""
    spellings: dict[str, Counter[str]] = {}
    for caption in captions:
        for word in _words(caption):
            spellings.setdefault(fold(word), Counter())[word] += 1
    ranked = sorted(spellings, key=lambda key: (-spellings[key].total(), key))[:most]
    names = [min(spellings[key], key=lambda word: (-spellings[key][word], word)) for key in ranked]
    numbers = {key: number for number, key in enumerate(ranked, 1)}

    def label_of(phrase: str) -> int:
        known = [numbers[key] for key in map(fold, _words(phrase)) if key in numbers]
        return known[-1] if known else 0

    return CaptionLabels([OTHER, *names], label_of)


def _words(text: str) -> list[str]:
    """The content words of a text, in lower case."""
    words = (word.strip(".,;:!?'\"()").lower() for word in text.split())
    return [word for word in words if len(word) > 1 and word.isalpha() and is_content(word)]
