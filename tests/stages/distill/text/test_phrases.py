"""`stages.distill.text.phrases`, the lexicon and the choice between chunkers; the parser has a file
of its own (test_distill_parser.py). Oracles are phrases marked by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc
from spacy.training import Example

from stages.distill.config import DistillConfig
from stages.distill.text.phrases import LexiconChunker, Phrase, make_chunker
from stages.ingest.sources.source import Picture
from stages.ingest.sources.toy import ToySource

LABELS = [
    "circle",
    "square",
    "triangle",
    "star",
    "car",
    "dog",
    "house",
    "man",
    "horse",
    "light",
    "traffic light,stop light",
    "bus",
    "shirt,t-shirt",
    "top",
]
ATTRIBUTES = ["red", "light blue", "black and white", "on", "on top", "brown-and-white"]


@pytest.fixture(scope="module")
def chunker() -> LexiconChunker:
    return LexiconChunker(LABELS, ATTRIBUTES)


# A phrase is marked by [ ] in the caption.
MARKED = [
    "[a small red circle] is left of [a large blue star]",
    "[two yellow triangles] and [the green square]",
    "[All three circles] touch [another square].",
    "[the circle] above [STARS]",
    # multi-word labels win over their last word, and synonyms count
    "[an old traffic light] near [stop lights]",
    # attributes of several words, also right behind another label
    "[a black and white dog] in [the light blue car]",
    "[dog] [black and white house]",
    "light blue, [light], [light blue light]",
    # labels in a row are one thing
    "[a red dog house]",
    # the verb between two labels is no modifier, what follows it is
    "[a man] riding [horses]",
    "[man] riding [brown horse]",
    # at most three modifiers
    "a very large [old dirty red car]",
    "the big [large old red bus] stops",
    # an attribute makes the word behind it a head, unless a label stands before
    "[two red blocks] and [the big light blue item], black and white and red.",
    "[a dog] red all over is [a red dog]",
    "[the shiny red block house] red",
    # a head before a preposition
    "a fence near [dogs] inside [houses]",
    # words inside words
    "carpet starfish circles2 encircled",
    "[a carpet star]",
    "a dogged man-eater, car-shaped",
    "[a dark-haired man] in [brown-and-white T-shirt]",
    "[a semi-circle]",
    # function words end a phrase; an attribute that is a preposition does not begin one
    "[the dog] on [top] of [my car]",
    "[the men]'s [shirts]",
    "one of [the dogs], not it, [7 cars]",
    # punctuation, other scripts, other quotes
    "[circle]!!! ... ?? ([square])",
    "naïve café «[circle]» 圆 — [star]’s",
    "  [the  red\n circle] \n on\t[traffic   lights]  ",
    "",
    " ",
    "\n",
    "...",
    "圆形",
    "\u200b",
    "🙂 [red circle] 🙂",
]


def unmark(marked: str) -> tuple[str, list[Phrase]]:
    """The caption and the phrases of a marked caption."""
    caption, phrases, start = "", [], 0
    for letter in marked:
        if letter == "[":
            start = len(caption)
        elif letter == "]":
            phrases.append(Phrase(caption[start:], start, len(caption)))
        else:
            caption += letter
    return caption, phrases


@pytest.mark.parametrize("marked", MARKED)
def test_lexicon(chunker: LexiconChunker, marked: str) -> None:
    caption, phrases = unmark(marked)
    assert chunker.chunk([caption]) == [phrases]


def test_a_caption_of_two_hundred_words(chunker: LexiconChunker) -> None:
    caption, phrases = unmark(" and ".join(["[the red circle]"] * 50))
    assert len(caption.split()) == 199
    assert chunker.chunk([caption]) == [phrases]


def test_captions_do_not_touch_each_other(chunker: LexiconChunker) -> None:
    pairs = [unmark(marked) for marked in MARKED]
    found = chunker.chunk([caption for caption, _ in pairs])
    assert found == [phrases for _, phrases in pairs]
    assert chunker.chunk([]) == []


@settings(max_examples=75, deadline=None, derandomize=True)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=8),
            st.sampled_from([*LABELS, *ATTRIBUTES, "the", "two", "riding", "-", "old", ",", "of"]),
        ),
        max_size=12,
    )
)
def test_any_text_gives_slices_from_left_to_right(parts: list[str]) -> None:
    """Whatever the caption: phrases are slices of it, in order, apart, and none is empty."""
    caption = " ".join(parts)
    (phrases,) = CHUNKER.chunk([caption])
    end = 0
    for phrase in phrases:
        assert end <= phrase.start < phrase.end
        assert caption[phrase.start : phrase.end] == phrase.text
        end = phrase.end


CHUNKER = LexiconChunker(LABELS, ATTRIBUTES)


def test_fingerprint_names_the_lexicon() -> None:
    """Equal lexicons, equal fingerprints; another label or attribute changes it."""
    assert LexiconChunker(LABELS, ATTRIBUTES).fingerprint == CHUNKER.fingerprint
    others = {
        LexiconChunker(LABELS[1:], ATTRIBUTES).fingerprint,
        LexiconChunker(LABELS, ATTRIBUTES[1:]).fingerprint,
        CHUNKER.fingerprint,
    }
    assert len(others) == 3


def test_auto_without_the_parser_says_how_to_get_it() -> None:
    said: list[str] = []
    config = DistillConfig(parser="xx_not_installed")
    chunker = make_chunker(config, LABELS, [], log=said.append)
    assert chunker.name == "lexicon"
    (line,) = said
    assert "`python -m spacy download xx_not_installed`" in line


def test_lexicon_by_choice_says_nothing() -> None:
    said: list[str] = []
    make_chunker(DistillConfig(phrases="lexicon"), LABELS, [], log=said.append)
    assert not said


def test_parser_that_is_not_there_is_an_error_with_the_fix() -> None:
    config = DistillConfig(phrases="parser", parser="xx_not_installed")
    with pytest.raises(ValueError, match="python -m spacy download xx_not_installed"):
        make_chunker(config, LABELS, [])


def test_toy_captions() -> None:
    """Oracle: the toy data set's own truth about where its phrases are."""
    source = ToySource(num_train=40, num_heldout=10, seed=3)
    chunker = LexiconChunker(source.label_names, source.attribute_names)
    for picture in source.pictures():
        assert isinstance(picture, Picture) and picture.truth is not None
        found = chunker.chunk(picture.captions)
        assert [[(p.start, p.end) for p in phrases] for phrases in found] == [
            [(p["start"], p["end"]) for p in phrases] for phrases in picture.truth["phrases"]
        ]


def test_the_vocabulary_does_not_grow_with_the_captions(chunker: LexiconChunker) -> None:
    """Ids, names and URLs in captions: no word outlives the call."""
    strings = chunker._lexicon._nlp.vocab.strings
    chunker.chunk(["a red square"])
    before = len(strings)
    for number in range(300):
        (phrases,) = chunker.chunk([f"a red square seen by user{number} at shop{number * 7}"])
        assert [phrase.text for phrase in phrases][0] == "a red square"
    assert len(strings) <= before + 10


def polish_parser(folder: Path) -> str:
    """A parser of a language that spaCy has no noun chunks for."""
    nlp = spacy.blank("pl")
    nlp.add_pipe("parser", config={"min_action_freq": 1})
    words = {"words": ["a", "b"], "heads": [1, 1], "deps": ["amod", "ROOT"]}
    example = Example.from_dict(Doc(nlp.vocab, words=["a", "b"]), words)
    nlp.initialize(lambda: [example])
    nlp.to_disk(folder)
    return str(folder)


def test_a_parser_without_noun_chunks_is_refused_before_any_work(tmp_path: Path) -> None:
    """Where it was asked for; "auto" says why it takes the lexicon instead."""
    parser = polish_parser(tmp_path / "pl")
    with pytest.raises(ValueError, match="spaCy has no noun chunks; expected a pipeline of a lang"):
        make_chunker(DistillConfig(phrases="parser", parser=parser), LABELS, ATTRIBUTES)
    said: list[str] = []
    config = DistillConfig(phrases="auto", parser=parser)
    assert make_chunker(config, LABELS, ATTRIBUTES, log=said.append).name == "lexicon"
    assert "no noun chunks" in said[0]
