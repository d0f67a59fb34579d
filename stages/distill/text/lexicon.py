"""Finds noun phrases without a parser, by a lexicon of the teacher's labels and attributes.

spaCy's English tokenizer and phrase matcher find the names in a caption, and a few rules the words
that belong to them.
"""

from __future__ import annotations

from collections.abc import Sequence

import spacy
from spacy.matcher import PhraseMatcher
from spacy.tokens import Doc, Span
from spacy.util import filter_spans

from sharding.writing.atomic import sha256_of
from stages.distill.text.words import RULES as WORD_RULES
from stages.distill.text.words import fold, is_content, synonyms

RULES = "lexicon/1"
"""Names the rules of this file in fingerprints; a change that moves any output raises it."""
MAX_MODIFIERS = 3
_DETERMINERS = frozenset(
    "a an the this that these those each every some any all both no another either neither "
    "several many few my your his her its our their".split()
)


class Lexicon:
    """The names of a teacher, and their forms in sentences.

    A phrase is: a determiner, a number, up to `MAX_MODIFIERS` modifiers, a head; all but the head
    may be absent. A modifier is a content word or an attribute of several words. The head is

    - a label; labels that are consecutive directly are one ("dog house"). Case and plural do not
      count, each synonym is found, and where names overlap the longest is: no light in a "light
      blue car". A word right behind a label is no modifier of the next: it is the verb in "man
      riding horse".
    - else the content word behind an attribute: the block of "a yellow block" where no label is
      called block. Not where the attribute follows a label, as in "a dog running fast".
    """

    def __init__(self, label_names: Sequence[str], attribute_names: Sequence[str]) -> None:
        self._nlp = spacy.blank("en")
        self._labels = self._matcher(label_names)
        self._attributes = self._matcher(attribute_names)
        digest = sha256_of([list(label_names), list(attribute_names)])
        self.fingerprint = f"{RULES} {WORD_RULES} {digest}"

    def find(self, text: str) -> list[tuple[int, int]]:
        """(start, end) of each phrase, characters, end exclusive; from left to right, apart."""
        return self.find_all([text])[0]

    def find_all(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """As find, for each of some texts, which is faster than one after the other."""
        with self._nlp.memory_zone():  # else the vocabulary keeps every word it ever saw
            return [self._find(text) for text in texts]

    def _find(self, text: str) -> list[tuple[int, int]]:
        doc, starts = self._read(text)
        return [
            (starts[span.start], starts[span.end - 1] + len(doc[span.end - 1]))
            for span in self._spans(doc)
        ]

    def _read(self, text: str) -> tuple[Doc, list[int]]:
        """The words of a text, with the folded word in the lemma's place, and the character at
        which each starts. spaCy makes tokens of needless blanks too; here they are left out, so
        that "a red  circle" is one phrase."""
        tokens = [token for token in self._nlp.tokenizer(text) if not token.is_space]
        starts = [token.idx for token in tokens]
        ends = [token.idx + len(token) for token in tokens]
        doc = Doc(
            self._nlp.vocab,
            words=[token.text for token in tokens],
            spaces=[text[end : end + 1].isspace() for end in ends],
            lemmas=[fold(token.text) for token in tokens],
        )
        return doc, starts

    def _matcher(self, names: Sequence[str]) -> PhraseMatcher:
        matcher = PhraseMatcher(self._nlp.vocab, attr="LEMMA")
        matcher.add("names", [self._read(text)[0] for name in names for text in synonyms(name)])
        return matcher

    def _spans(self, doc: Doc) -> list[Span]:
        labels = self._labels(doc, as_spans=True)
        # With function words at an end ("on", "in background") an attribute would take what
        # belongs to the sentence.
        attributes = [
            span
            for span in self._attributes(doc, as_spans=True)
            if is_content(span[0].lower_) and is_content(span[-1].lower_)
        ]
        is_label = {(span.start, span.end) for span in labels}  # what is both, as orange, is one
        kept = filter_spans([*labels, *attributes])
        labels = [span for span in kept if (span.start, span.end) in is_label]
        attributes = [span for span in kept if (span.start, span.end) not in is_label]
        attribute_start = {span.end: span.start for span in attributes}
        phrases = _label_phrases(doc, labels, attribute_start)
        taken = {i for span in (*phrases, *attributes) for i in range(span.start, span.end)}
        for attribute in attributes:
            noun = attribute.end
            floor = max((span.end for span in phrases if span.start < noun), default=0)
            if noun in taken or 0 < floor >= attribute.start or not _is_word(doc, noun):
                continue
            phrases.append(doc[_extend(doc, noun, floor, attribute_start) : noun + 1])
        return sorted(phrases, key=lambda span: span.start)


def _label_phrases(doc: Doc, labels: list[Span], attribute_start: dict[int, int]) -> list[Span]:
    """The phrases whose head is one of `labels`, from left to right."""
    phrases: list[Span] = []
    for label in labels:
        if _is_hyphen(doc, label.end):
            continue  # the car of a "car-shaped box"
        floor = phrases[-1].end if phrases else 0
        if phrases and label.start == floor:
            phrases[-1] = doc[phrases[-1].start : label.end]
        else:
            phrases.append(doc[_extend(doc, label.start, floor, attribute_start) : label.end])
    return phrases


def _extend(doc: Doc, head: int, floor: int, attribute_start: dict[int, int]) -> int:
    """Where the phrase with token `head` starts: over modifiers, number and determiner, not below
    `floor`, the end of the phrase before (0: none). `attribute_start`: by the token behind it."""
    start = _word_start(doc, head, floor)
    for _ in range(MAX_MODIFIERS):
        attribute = attribute_start.get(start, -1)
        if attribute >= floor:
            start = attribute
        elif start == floor or not _is_word(doc, start - 1):
            break
        else:
            word = _word_start(doc, start - 1, floor)
            if word == floor > 0:
                break  # the verb between two labels, see LexiconChunker
            start = word
    if start > floor and doc[start - 1].like_num:
        start -= 1
    if start > floor and doc[start - 1].lower_ in _DETERMINERS:
        start -= 1
    return start


def _is_word(doc: Doc, index: int) -> bool:
    """Whether token `index` is there and says something about an object."""
    return index < len(doc) and doc[index].is_alpha and is_content(doc[index].lower_)


def _word_start(doc: Doc, start: int, floor: int) -> int:
    """The first token of the hyphenated word that token `start` is in, not below `floor`."""
    while start - 2 >= floor and _is_hyphen(doc, start - 1):
        start -= 2
    return start


def _is_hyphen(doc: Doc, index: int) -> bool:
    """Whether token `index` is there and joins its neighbours into one word."""
    return (
        0 < index < len(doc)
        and doc[index].text == "-"
        and not doc[index - 1].whitespace_
        and not doc[index].whitespace_
    )
