"""Normalises answers as VQA's official script does.

Source: GT-Vision-Lab/VQA, `vqaEval.py`, on Python 3. The quirks are part of every published score.
"""

from __future__ import annotations

import re

DELETED_OR_SPACED = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_BETWEEN_DIGITS = re.compile(r"\d,\d")
# The script means to keep decimal points; what it says is "a period that no digit follows".
_PERIOD = re.compile(r"\.(?!\d)")
MAX_PERIODS = 32  # the script passes a flag (re.UNICODE, 32) where `sub` takes a count
ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = "zero one two three four five six seven eight nine ten".split()
NUMBER_WORDS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"]


# Each form with one of its apostrophes missing. The script's own slip is the last entry; its keys
# with a capital ("Im") never match, as the text is in lower case by then.
CONTRACTIONS = {key: word for word in _CONTRACTED for key in _without_one_apostrophe(word)} | {
    "somebody'd": "somebodyd"
}


def clean(answer: str) -> str:
    """The step that is always taken: newlines and tabs are spaces, ends are stripped."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def process_punctuation(text: str) -> str:
    """Delete or space punctuation marks, then delete periods that no digit follows."""
    has_comma_in_number = _COMMA_BETWEEN_DIGITS.search(text) is not None
    result = text
    for mark in DELETED_OR_SPACED:
        is_beside_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if is_beside_space or has_comma_in_number else " ")
    return _PERIOD.sub("", result, count=MAX_PERIODS)


def process_digits_and_articles(text: str) -> str:
    """Lower case, number words as digits, no articles, contractions with their apostrophes."""
    words = (NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def normalize(answer: str) -> str:
    """All steps on one answer: what the vocabulary of answers is made of."""
    return process_digits_and_articles(process_punctuation(clean(answer)))
