"""`stages.distill.text.similarity` and `words`: oracles are word sets and cosines worked out by
hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from sharding.format.schema import object_dtype
from stages.distill.text.similarity import LexicalSimilarity, cosine
from stages.distill.text.words import content_words, fold, is_content, synonyms

LABELS = ["circle", "square", "traffic light,stop light", "bus,coach", "top"]
ATTRIBUTES = ["red", "light blue,azure", "empty"]


def objects_of(*pairs: tuple[int, int]) -> np.ndarray:
    """Rows of (label, attribute)."""
    objects = np.zeros(len(pairs), object_dtype(feature_size=1, num_top=1, attributes=True))
    for item, (label, attribute) in zip(objects, pairs):
        item["label"], item["attribute"] = label, attribute
    return objects


def compare(
    phrase: str, *pairs: tuple[int, int], object_text: str = "attribute label"
) -> list[float]:
    similarity = LexicalSimilarity(LABELS, ATTRIBUTES, object_text=object_text)
    return similarity.compare([phrase], objects_of(*pairs))[0]


def test_cosine_with_attribute_and_label() -> None:
    """{small, red, circle} against {red, circle}, {red, square}, {empty, circle}, {empty, bus}"""
    got = compare("the two small red circles", (0, 0), (1, 0), (0, 2), (3, 2))
    expected = [2 / math.sqrt(6), 1 / math.sqrt(6), 1 / math.sqrt(6), 0.0]
    assert got == [round(value, 4) for value in expected]


def test_label_alone() -> None:
    assert compare("a red circle", (0, 1), (1, 0), object_text="label") == [0.7071, 0.0]
    teacher_without = LexicalSimilarity(LABELS, [], object_text="attribute label")
    plain = np.zeros(1, object_dtype(feature_size=1, num_top=1, attributes=False))
    assert teacher_without.compare(["a red circle"], plain) == [[0.7071]]


def test_negative_attribute_means_none_was_seen() -> None:
    assert compare("a circle", (0, -1)) == [1.0]


def test_the_best_synonym_counts() -> None:
    """A coach is a bus; "azure" and "light blue" name one attribute."""
    assert compare("AZURE COACHES", (3, 1)) == [1.0]
    assert compare("a light blue bus", (3, 1)) == [1.0]
    assert compare("stop lights", (2, -1)) == [1.0]
    assert compare("a light", (2, -1)) == [0.7071]


def test_words_that_tell_objects_apart_are_no_stop_words() -> None:
    assert compare("an empty bus", (3, 2), (3, 0)) == [1.0, 0.5]
    assert compare("the top", (4, -1)) == [1.0]


@pytest.mark.parametrize("phrase", ["", "...", "the", "3", "圆", "carpet"])
def test_phrases_with_nothing_in_common(phrase: str) -> None:
    assert compare(phrase, (0, 0), (3, 1)) == [0.0, 0.0]


def test_no_phrases_and_no_objects() -> None:
    similarity = LexicalSimilarity(LABELS, ATTRIBUTES, object_text="label")
    assert similarity.compare([], objects_of((0, 0))) == []
    assert similarity.compare(["a", "b"], objects_of()) == [[], []]


def test_values_are_short_in_json() -> None:
    """Four decimals: json of another machine must be the same text."""
    assert json.dumps(compare("small red circle", (0, 0))) == "[0.8165]"


def test_cosine_of_nothing() -> None:
    assert cosine(frozenset(), frozenset()) == 0.0
    assert cosine(frozenset("ab"), frozenset("ab")) == 1.0


PLURALS = (
    "house houses, bus buses, box boxes, dress dresses, glass glasses, dish dishes, bench benches, "
    "knife knives, leaf leaves, glove gloves, pony ponies, cookie cookies, tie ties, toy toys, "
    "shoe shoes, potato potatoes, ski skis, man men, woman women, fireman firemen, person people, "
    "child children, foot feet, tooth teeth, mouse mice, goose geese, circle circles, horse horses"
)


@pytest.mark.parametrize("pair", PLURALS.split(", "))
def test_singular_and_plural_share_a_key(pair: str) -> None:
    one, many = pair.split()
    assert fold(one) == fold(many) == fold(many.upper())


def test_different_things_keep_different_keys() -> None:
    words = {pair.split()[0] for pair in PLURALS.split(", ")}
    words |= {"car", "care", "kit", "kite", "cap", "cape", "plan", "plane", "as", "is", "bun"}
    assert len({fold(word) for word in words}) == len(words)


def test_content_words() -> None:
    assert content_words("The dog's T-shirt, 3 of seven!") == {"dog", "shirt"}
    assert content_words("ﬁsh and CAFÉ") == {"fish", "café"}  # ligature; compatible letters
    assert content_words("the") == {"the"}  # nothing else to go by
    assert not is_content("two") and not is_content("THE") and is_content("front")


def test_synonyms() -> None:
    assert synonyms("bike, bicycle,") == ["bike", "bicycle"]
    assert synonyms("") == []
