"""How near a phrase is to each object in words: the target of phrase-region alignment.

Reached from `stages.distill.label`. KD-VLP compares noun phrases with object labels "in the
linguistic space" (abstract); which embedding it used is not known, so the measure is ours: the
cosine of two word sets, |A and B| / sqrt(|A| |B|), 1 for the same words and 0 for none in common.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from stages.distill.words import content_words, synonyms

DECIMALS = 4


class LexicalSimilarity:
    """Cosine of word sets between phrases and the words that stand for an object.

    Words are folded by `stages.distill.words`, function words and numbers left out. Of a label or
    attribute with synonyms ("bike,bicycle") the nearest counts. `object_text` is DistillConfig's.
    """

    def __init__(
        self, label_names: Sequence[str], attribute_names: Sequence[str], *, object_text: str
    ) -> None:
        self._label_names, self._attribute_names = label_names, attribute_names
        self._with_attribute = object_text == "attribute label" and bool(attribute_names)
        # A thousand labels by hundreds of attributes: few of the pairs are ever seen.
        self._words = functools.lru_cache(maxsize=65536)(self._object_words)

    def compare(self, phrases: Sequence[str], objects: np.ndarray) -> list[list[float]]:
        """A row a phrase, a value an object row, in [0, 1] and rounded to `DECIMALS` places."""
        labels = objects["label"].tolist()
        attributes = (
            objects["attribute"].tolist() if self._with_attribute else [None] * len(labels)
        )
        objects_words = [self._words(*pair) for pair in zip(labels, attributes)]
        rows = []
        for words in map(content_words, phrases):
            rows.append([max(cosine(words, names) for names in each) for each in objects_words])
        return rows

    def _object_words(self, label: int, attribute: int | None) -> tuple[frozenset[str], ...]:
        """The word sets, one for each way to write it, of an object's text."""
        label_texts = synonyms(self._label_names[label]) or [""]
        # A negative attribute is a teacher's way to say that it saw none.
        if attribute is None or attribute < 0:
            return tuple(map(content_words, label_texts))
        attribute_texts = synonyms(self._attribute_names[attribute]) or [""]
        return tuple(content_words(f"{a} {t}") for a in attribute_texts for t in label_texts)


def cosine(a: frozenset[str], b: frozenset[str]) -> float:
    """|a and b| / sqrt(|a| |b|), rounded; 0 where either is empty."""
    if not a or not b:
        return 0.0
    return round(len(a & b) / math.sqrt(len(a) * len(b)), DECIMALS)
