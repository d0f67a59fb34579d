"""Normalises words of captions and labels, so that spellings of one thing are equal."""

from __future__ import annotations

import re
import unicodedata

from spacy.lang.en.lex_attrs import like_num
from spacy.lang.en.stop_words import STOP_WORDS

RULES = "words/1"
"""Names the rules of this file in fingerprints; a change that moves any output raises it."""

# spaCy's stop words include some that distinguish objects, and lack some prepositions.
_CONTENT = {"back", "bottom", "empty", "front", "full", "side", "top"}
_PREPOSITIONS = {
    "alongside",
    "atop",
    "beneath",
    "inside",
    "like",
    "near",
    "outside",
    "past",
    "underneath",
}
_FUNCTION_WORDS = frozenset(STOP_WORDS) - _CONTENT | _PREPOSITIONS
_IRREGULAR = {
    "people": "person",
    "children": "child",
    "feet": "foot",
    "teeth": "tooth",
    "mice": "mouse",
    "geese": "goose",
}
_SIBILANT = re.compile(r"(s|x|z|ch|sh|o)e$")
_LETTERS = re.compile(r"[^\W\d_]+")


def fold(word: str) -> str:
    """The key that a word's singular and plural share; a key, not always a word.

    Case is folded and a trivial plural rule applied. Telling "houses" (house) from "buses" (bus)
    takes a dictionary, so instead of cutting only the plural, both forms lose what they differ by:
    house, houses -> hous; bus, buses -> bus; knife, knives -> knif; pony, ponies -> pony.
    """
    word = unicodedata.normalize("NFKC", word).casefold()
    word = _IRREGULAR.get(word, word)
    if word.endswith("men"):
        word = word[:-3] + "man"
    if len(word) > 2 and word.endswith("s") and not word.endswith(("ss", "us")):
        word = word[:-1]
    if len(word) > 3 and word.endswith("ie"):
        return word[:-2] + "y"
    if word.endswith(("ve", "fe")):
        return word[:-2] + "f"
    return _SIBILANT.sub(r"\1", word)


def is_content(word: str) -> bool:
    """Whether a word says something about an object: no function word, no number."""
    word = word.lower()
    return word not in _FUNCTION_WORDS and not like_num(word)


def content_words(text: str) -> frozenset[str]:
    """The folded content words of a text; single letters and function words count only where the
    text has nothing else."""
    words = [word.lower() for word in _LETTERS.findall(unicodedata.normalize("NFKC", text))]
    content = [word for word in words if len(word) > 1 and is_content(word)]
    return frozenset(map(fold, content or words))


def bare(phrase: str) -> str:
    """The phrase without the function words and numbers at its start: "the two red dogs" -> "red
    dogs"; its last word stays whatever it is."""
    words = phrase.split()
    while len(words) > 1 and not is_content(words[0].strip(".,;:'\"")):
        words.pop(0)
    return " ".join(words)


def synonyms(name: str) -> list[str]:
    """The names in a label such as "bike,bicycle" (Visual Genome's vocabulary); the first leads."""
    return [part for part in (part.strip() for part in name.split(",")) if part]
