"""The recipe's `distill.similarity` part: one of four ways to compare phrases with labels.

KD-VLP compares them "in the linguistic space"; by which model is not known, so the choice is ours.
`stages.distill.text.similarity` computes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Tag

from boxless.errors import BoxlessError
from stages.section_kinds import by_kind


@dataclass(frozen=True, kw_only=True)
class LexicalConfig:
    """The cosine of word sets; needs no model."""

    kind: Literal["lexical"] = "lexical"


@dataclass(frozen=True, kw_only=True)
class SpacyConfig:
    """The cosine of mean word vectors."""

    kind: Literal["spacy"] = "spacy"
    model: str = "en_core_web_md"
    """A spaCy pipeline with vectors, by its package's name or its folder."""

    def __post_init__(self) -> None:
        _check_model(self.model)


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """The cosine of means over a BERT's word pieces, without [CLS] and [SEP]."""

    kind: Literal["bert"] = "bert"
    model: str = "bert-base-cased"
    """Any text encoder of transformers, by name or folder."""
    layer: Literal["input", "last"] = "input"
    """Which vectors: the `input` embeddings, each word piece's own, or those of the `last` layer,
    which know of the pieces around them."""

    def __post_init__(self) -> None:
        _check_model(self.model)


@dataclass(frozen=True, kw_only=True)
class SentenceConfig:
    """The cosine of sentence embeddings: means over all pieces of the last layer, for models that
    were trained for it (Sentence-BERT, arXiv 1908.10084)."""

    kind: Literal["sentence"] = "sentence"
    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """A sentence encoder of transformers with mean pooling, by name or folder."""

    def __post_init__(self) -> None:
        _check_model(self.model)


SimilarityConfig = Annotated[
    Annotated[LexicalConfig, Tag("lexical")]
    | Annotated[SpacyConfig, Tag("spacy")]
    | Annotated[BertConfig, Tag("bert")]
    | Annotated[SentenceConfig, Tag("sentence")],
    by_kind("lexical"),
]


def _check_model(model: str) -> None:
    if not model:
        raise BoxlessError("model is empty; expected a model's name or the path of its folder.")
