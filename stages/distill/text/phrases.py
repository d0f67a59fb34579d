"""Noun phrases of captions, found offline so that training needs no parser.

Two ways, one call: a spaCy pipeline with a parser where one is installed, else the teacher's own
labels and attributes as a lexicon.

In both a leading determiner stays in the phrase ("a red circle"), as spaCy's noun chunks and
Flickr30k Entities have it; the similarity leaves it out. Pronouns are no phrases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import spacy
from spacy.language import Language
from spacy.tokens import Span

from boxless.errors import BoxlessError
from stages.distill.config import DistillConfig
from stages.distill.text.lexicon import Lexicon
from stages.distill.text.spacy_pipeline import load_pipeline


@dataclass(frozen=True)
class Phrase:
    """A noun phrase of a caption: `text == caption[start:end]`, characters, end exclusive."""

    text: str
    start: int
    end: int


class NoNounChunks(BoxlessError):
    """A parser of a language whose noun phrases spaCy does not know how to find."""


class Chunker(Protocol):
    """Finds the noun phrases of captions."""

    name: str
    fingerprint: str

    def chunk(self, captions: Sequence[str]) -> list[list[Phrase]]:
        """The phrases of each caption, from left to right, none overlapping."""


class ParserChunker:
    """`doc.noun_chunks` of a spaCy pipeline with a parser.

    `parser` is an installed package's name or a folder. Raises ValueError where there is no
    pipeline, or none with a parser.
    """

    def __init__(self, parser: str) -> None:
        self._nlp, digest = load_pipeline(
            parser, said="distill.parser", exclude=["ner", "lemmatizer"]
        )
        if not self._nlp.has_pipe("parser"):
            raise BoxlessError(
                f"the spaCy pipeline {parser} has {', '.join(self._nlp.pipe_names) or 'nothing'}; "
                "expected a parser among its parts, as en_core_web_sm has."
            )
        meta = self._nlp.meta
        if not has_noun_chunks(self._nlp):
            raise NoNounChunks(
                f"distill.parser is {parser}, of language {meta['lang']}, for which spaCy has no "
                "noun chunks; expected a pipeline of a language that has them, as en_core_web_sm, "
                "or distill.phrases lexicon."
            )
        self.name = f"{meta['lang']}_{meta['name']} {meta['version']}"
        self.fingerprint = f"parser {self.name} {digest}"

    def chunk(self, captions: Sequence[str]) -> list[list[Phrase]]:
        """As Chunker.chunk."""
        with self._nlp.memory_zone():  # else the vocabulary keeps every word it ever saw
            return [
                [_phrase(chunk) for chunk in doc.noun_chunks if _is_noun_phrase(chunk)]
                for doc in self._nlp.pipe(captions)
            ]


class LexiconChunker:
    """A label of the teacher with the words before it that describe it; see Lexicon."""

    name = "lexicon"

    def __init__(self, label_names: Sequence[str], attribute_names: Sequence[str]) -> None:
        self._lexicon = Lexicon(label_names, attribute_names)
        self.fingerprint = self._lexicon.fingerprint

    def chunk(self, captions: Sequence[str]) -> list[list[Phrase]]:
        """As Chunker.chunk."""
        return [
            [Phrase(caption[start:end], start, end) for start, end in places]
            for caption, places in zip(captions, self._lexicon.find_all(captions), strict=True)
        ]


def make_chunker(
    config: DistillConfig,
    label_names: Sequence[str],
    attribute_names: Sequence[str],
    *,
    log: Callable[[str], None] = print,
) -> Chunker:
    """The chunker that the recipe asks for; `log` gets a message when "auto" falls back to the
    lexicon.

    Raises ValueError where `phrases` is "parser" and the pipeline is not installed, or its language
    has no noun chunks.
    """
    fix = (
        f"Get it with `python -m spacy download {config.parser}`, "
        "or set distill.parser to the path of a spaCy pipeline."
    )
    installed = spacy.util.is_package(config.parser) or Path(config.parser).is_dir()
    if config.phrases == "parser" and not installed:
        raise BoxlessError(
            f"phrases is 'parser', but the spaCy pipeline {config.parser} is neither an installed "
            f"package nor a folder. {fix} Or set distill.phrases to lexicon."
        )
    if config.phrases == "lexicon" or not installed:
        if config.phrases == "auto":
            log(
                f"The spaCy pipeline {config.parser} is not installed: phrases are found by the "
                f"teacher's labels and attributes. {fix}"
            )
        return LexiconChunker(label_names, attribute_names)
    try:
        return ParserChunker(config.parser)
    except NoNounChunks as error:
        if config.phrases == "parser":
            raise
        log(f"{error} Phrases are found by the teacher's labels and attributes.")
        return LexiconChunker(label_names, attribute_names)


def has_noun_chunks(nlp: Language) -> bool:
    """Whether spaCy knows how to find noun phrases in the language of a pipeline."""
    return nlp.vocab.get_noun_chunks is not None


def _is_noun_phrase(chunk: Span) -> bool:
    """Not "it", and not the spaces or dots that a parser takes for nouns in odd captions."""
    return chunk.root.pos_ != "PRON" and any(map(str.isalnum, chunk.root.text))


def _phrase(chunk: Span) -> Phrase:
    """`chunk` without spaces and punctuation at its start; its end is a word, the noun."""
    start = next(token.i for token in chunk if not token.is_space and not token.is_punct)
    span = chunk.doc[start : chunk.end]
    return Phrase(span.text, span.start_char, span.end_char)
