"""Similarity of a phrase to each object's label: the target of phrase-region alignment.

KD-VLP compares noun phrases with object labels "in the linguistic space" (abstract); which
embedding it used is not known, so the recipe chooses: word sets (`LexicalSimilarity`) or vectors
(`EmbeddingSimilarity`, by an `Embedder`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from stages.distill.config import DistillConfig
from stages.distill.text.embedders import Embedder, make_embedder
from stages.distill.text.words import RULES as WORD_RULES
from stages.distill.text.words import bare, content_words, synonyms

RULES = "similarity/1"
"""Names the rules of this file in fingerprints; a change that moves any output raises it."""
DECIMALS = 4
_MOST_TEXTS_KEPT = 65536


class Similarity(Protocol):
    """Compares phrases with objects."""

    name: str
    fingerprint: str
    """All that shapes its values, a model's weights included."""

    def compare(self, phrases: Sequence[str], objects: np.ndarray) -> list[list[float]]:
        """A row a phrase, a value an object row, rounded to `DECIMALS` places. What it says of a
        picture does not depend on earlier calls."""


def make_similarity(
    config: DistillConfig, label_names: Sequence[str], attribute_names: Sequence[str]
) -> Similarity:
    """The recipe's. Raises ValueError where its model cannot be loaded, or has no vectors."""
    if config.similarity.kind == "lexical":
        return LexicalSimilarity(label_names, attribute_names, object_text=config.object_text)
    texts = ObjectTexts(label_names, attribute_names, config.object_text)
    return EmbeddingSimilarity(make_embedder(config.similarity), texts)


class ObjectTexts:
    """The words that stand for an object: each way to write its label, or its attribute and label.

    `object_text` is DistillConfig's.
    """

    def __init__(
        self, label_names: Sequence[str], attribute_names: Sequence[str], object_text: str
    ) -> None:
        self._label_names, self._attribute_names = label_names, attribute_names
        self._with_attribute = object_text == "attribute label" and bool(attribute_names)
        # A thousand labels by hundreds of attributes: few of the pairs are ever seen.
        self._texts = functools.lru_cache(maxsize=_MOST_TEXTS_KEPT)(self._texts_of)

    def of(self, objects: np.ndarray) -> list[tuple[str, ...]]:
        """The texts of each object row."""
        labels = objects["label"].tolist()
        attributes = objects["attribute"].tolist() if self._with_attribute else [None] * len(labels)
        return [self._texts(*pair) for pair in zip(labels, attributes)]

    def _texts_of(self, label: int, attribute: int | None) -> tuple[str, ...]:
        label_texts = synonyms(self._label_names[label]) or [""]
        # A negative attribute is a teacher's way to say that it saw none.
        if attribute is None or attribute < 0:
            return tuple(label_texts)
        attribute_texts = synonyms(self._attribute_names[attribute]) or [""]
        return tuple(f"{a} {t}".strip() for a in attribute_texts for t in label_texts)


class LexicalSimilarity:
    """Cosine of word sets, |A and B| / sqrt(|A| |B|): 1 for the same words, 0 for none in common.

    Words are folded by `stages.distill.text.words`, function words and numbers left out. Of a label
    or attribute with synonyms ("bike,bicycle") the nearest counts. `object_text` is
    DistillConfig's.
    """

    name = "lexical"
    fingerprint = f"lexical {RULES} {WORD_RULES}"

    def __init__(
        self, label_names: Sequence[str], attribute_names: Sequence[str], *, object_text: str
    ) -> None:
        self._texts = ObjectTexts(label_names, attribute_names, object_text)
        self._words = functools.lru_cache(maxsize=_MOST_TEXTS_KEPT)(content_words)

    def compare(self, phrases: Sequence[str], objects: np.ndarray) -> list[list[float]]:
        """As Similarity.compare; values in [0, 1]."""
        names = [tuple(map(self._words, texts)) for texts in self._texts.of(objects)]
        return [
            [max(cosine(words, one) for one in each) for each in names]
            for words in map(content_words, phrases)
        ]


class EmbeddingSimilarity:
    """Cosine of vectors of texts; values in [-1, 1], 0 where a text has no vector.

    A phrase goes without the articles and numbers at its start. Of an object's texts the nearest
    counts. Every distinct text is embedded once, and alone, so that its vector is the same to the
    bit in any order of pictures.
    """

    def __init__(self, embedder: Embedder, texts: ObjectTexts) -> None:
        self._texts = texts
        self._vector = functools.lru_cache(maxsize=_MOST_TEXTS_KEPT)(
            lambda text: unit(embedder.embed(text))
        )
        self.name = embedder.name
        self.fingerprint = f"{RULES} {WORD_RULES} {embedder.fingerprint}"

    def compare(self, phrases: Sequence[str], objects: np.ndarray) -> list[list[float]]:
        """As Similarity.compare."""
        names = [np.stack([*map(self._vector, texts)]) for texts in self._texts.of(objects)]
        rows = []
        for vector in (self._vector(bare(phrase)) for phrase in phrases):
            rows.append([round(float((each @ vector).max()), DECIMALS) for each in names])
        return rows


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector brought to length 1, in float64; a zero vector stays."""
    vector = vector.astype(np.float64)
    return vector / (np.linalg.norm(vector) or 1.0)


def cosine(a: frozenset[str], b: frozenset[str]) -> float:
    """|a and b| / sqrt(|a| |b|), rounded; 0 where either is empty."""
    if not a or not b:
        return 0.0
    return round(len(a & b) / math.sqrt(len(a) * len(b)), DECIMALS)
