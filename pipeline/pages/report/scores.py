"""The report's scores: cards of the main ones, then a table of all.

Reads transfer/evaluate/scores.json and, where a student was finetuned on a task,
transfer/nlvr/scores.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element

from pipeline.pages.charts import score_bar
from pipeline.pages.html import Part, h
from pipeline.pages.sections import Section, count, missing, percent, short, table
from pipeline.runner.run_files import number, read_object
from pipeline.runner.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """A main score in words: its title at the top of the page, its name in the table."""

    title: str
    name: str
    words: str


MEANINGS = {
    "image_to_text_r1": Meaning(
        title="Image-to-text retrieval",
        name="Picture to text, R@1",
        words="Recall at 1: share of pictures whose top-ranked text is one of their own captions.",
    ),
    "text_to_image_r1": Meaning(
        title="Text-to-image retrieval",
        name="Text to picture, R@1",
        words="Recall at 1: share of captions whose top-ranked picture is the one described.",
    ),
    "phrase_grounding": Meaning(
        title="Phrase grounding, pointing",
        name="Phrase grounding",
        words="Pointing accuracy without boxes: share of phrases whose highest-scoring point lies "
        "on the right object.",
    ),
    "phrase_best_box": Meaning(
        title="Phrase grounding, best box",
        name="Phrase grounding, best box",
        words="Share of phrases whose chosen box, of the teacher's, overlaps the right object with "
        "an IoU of 0.5 or more.",
    ),
    "object_label": Meaning(
        title="Object labels",
        name="Object label",
        words="Accuracy of the label predicted at an object's position.",
    ),
    "teacher_ap50": Meaning(
        title="Teacher, AP50",
        name="Teacher, AP50",
        words="Average precision of the teacher: a box counts when its label is right and it "
        "overlaps the true box by half or more.",
    ),
    "nlvr_accuracy": Meaning(
        title="NLVR accuracy",
        name="Sentence truth",
        words="Accuracy of judging whether a sentence is true of a picture. Chance is the majority "
        "class.",
    ),
}
_TRIVIAL = {"center": "the picture's center", "largest": "the largest box"}
"""Constant answers that a score is compared with, in words."""
_ORDER = (
    "nlvr_accuracy",
    "image_to_text_r1",
    "text_to_image_r1",
    "phrase_grounding",
    "phrase_best_box",
    "object_label",
    "teacher_ap50",
)


@dataclass(frozen=True, kw_only=True)
class Score:
    """One score, 0 to 1; chance and num_queries are None where unknown. trivial: what a constant
    answer reaches, by its name."""

    key: str
    value: float
    chance: float | None
    num_queries: int | None
    trivial: tuple[tuple[str, float], ...] = ()

    @property
    def times_chance(self) -> str:
        """How many times chance it is, in words."""
        return f"{short(self.value / self.chance)} ×" if self.chance else "–"


def read_scores(run: RunFolder) -> list[Score]:
    """All scores of a run: the main ones first."""
    entries: dict[str, Any] = {}
    for task in ("evaluate", "nlvr"):
        entries |= read_object(run.transfer / task / "scores.json")
    found = [_score(key, entry) for key, entry in entries.items() if isinstance(entry, dict)]
    scores = [score for score in found if score is not None]
    return sorted(scores, key=lambda score: place_of_score(score.key))


def score_name(key: str) -> str:
    """A score's name for people: "text_to_image_r5" -> "Text to picture, R@5"."""
    if key in MEANINGS:
        return MEANINGS[key].name
    way, k = split_recall(key)
    if k and f"{way}_r1" in MEANINGS:
        return MEANINGS[f"{way}_r1"].name.replace("R@1", f"R@{k}")
    return key.replace("_", " ")


def scores_section(run: RunFolder) -> Section:
    """Large figures and the table; a note where nothing was scored yet."""
    scores = read_scores(run)
    if not scores:
        return Section(
            name="scores",
            title="Scores",
            content=(missing("No scores yet: evaluate has not finished."),),
        )
    cards = [_card(score) for score in scores if score.key in MEANINGS]
    head = ("Score", "Value", "Chance", "Times chance", "Queries")
    rows = [_row(score) for score in scores]
    note = (
        "R@k, recall at k: the right answer is among the student's first k. Chance is the score of "
        "random guesses. All scores are on held-out pictures, which no stage was trained on."
    )
    return Section(
        name="scores",
        title="Scores",
        content=(
            h("ul", {"class": "cards"}, *cards),
            table("All scores beside chance", head, rows),
            h("p", {"class": "note"}, note),
        ),
    )


def _score(key: str, entry: dict[str, Any]) -> Score | None:
    value, queries = number(entry.get("value")), number(entry.get("num"))
    if value is None:
        return None
    return Score(
        key=key,
        value=value,
        chance=number(entry.get("chance")),
        num_queries=None if queries is None else int(queries),
        trivial=tuple(
            (words, share)
            for name, words in _TRIVIAL.items()
            if (share := number(entry.get(name))) is not None
        ),
    )


def place_of_score(key: str) -> tuple[int, str, int]:
    """So that the main scores come first and r5 before r10, each way's recalls together."""
    way, k = split_recall(key)
    first = f"{way}_r1" if k else key
    return (_ORDER.index(first) if first in _ORDER else len(_ORDER), way, k)


def split_recall(key: str) -> tuple[str, int]:
    """ "text_to_image_r5" -> ("text_to_image", 5); a key that is no recall has 0 for its k."""
    way, _, k = key.rpartition("_r")
    return (way, int(k)) if way and k.isdecimal() else (key, 0)


def _card(score: Score) -> Element:
    meaning = MEANINGS[score.key]
    return h(
        "li",
        h("h3", meaning.title),
        h("p", {"class": "value"}, percent(score.value)),
        score_bar(score.value, score.chance),
        h("p", {"class": "beside"}, _beside(score)),
        h("p", {"class": "words"}, meaning.words),
    )


def _beside(score: Score) -> str:
    """Chance and constant answers in words; at drawing boxes chance is next to nothing."""
    parts = [f"{words}: {percent(share)}" for words, share in score.trivial]
    if score.chance:
        guess = "the commoner answer" if score.key == "nlvr_accuracy" else "chance"
        parts.insert(0, f"{guess}: {percent(score.chance)}")
    elif score.chance == 0:
        parts.insert(0, "chance: about 0\N{NO-BREAK SPACE}%")
    return ", ".join(parts)


def _row(score: Score) -> list[Part]:
    return [
        score_name(score.key),
        percent(score.value),
        percent(score.chance) if score.chance is not None else "–",
        score.times_chance,
        count(score.num_queries) if score.num_queries is not None else "–",
    ]
