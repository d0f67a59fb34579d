"""What the page and the contact sheet show of one sample: its objects, their names and phrases.

What a sample says is checked here, once: the json may be of any origin. Letters: O objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.pages.boxes import is_true
from pipeline.pages.object_names import Names
from pipeline.pages.shards.shard_browser import Whole
from pipeline.pages.thumbnails import Reduced, reduced
from sharding.format.schema import Sample, ShardError, check_objects
from stages.annotations.true_phrases import object_rows

Box = tuple[float, float, float, float]

_NUM_TOP = 5
_MOST_MARKS = 300
_OUTSIDE_PX = 2.0
_SAME_SIMILARITY = 1e-6


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A box on the picture; what is not known is None.

    number: of the object in its array, from 1. box: x0, y0, x1, y1 in pixels of the original
    picture, cut to it. label, attribute: names. score, attribute_score: the teacher's certainty,
    0 to 1. soft: the soft label's best classes with their probabilities. true: whether a true
    object of that label is there.
    """

    number: int
    box: Box
    label: str
    attribute: str | None
    score: float | None = None
    attribute_score: float | None = None
    soft: tuple[tuple[str, float], ...] = ()
    true: bool | None = None

    @property
    def name(self) -> str:
        """ "red circle"; of synonyms ("traffic light,stop light") the first."""
        words = (self.attribute, self.label)
        return " ".join(word.split(",")[0].strip() for word in words if word)


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """A phrase of a caption, its characters from start to before end, and what it means.

    numbers: of the marks that it is nearest to, none where it is like none of them. similarity: to
    these, 0 to 1; None where the truth says which object is meant. similarities: to each mark.
    """

    start: int
    end: int
    numbers: tuple[int, ...]
    similarity: float | None
    similarities: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption and its phrases, in the order of the text, none of them over another."""

    text: str
    phrases: tuple[Phrase, ...]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A sample as it is drawn.

    marks: the objects of at least the score asked for; in an image shard the true ones.
    has_objects: whether a teacher has looked. num_weak: objects left out for their score. truth:
    boxes of true objects, where the marks are a teacher's. words: what is odd, for people.
    """

    key: str
    shard: str
    picture: Reduced
    marks: tuple[Mark, ...]
    has_objects: bool
    num_weak: int
    truth: tuple[Box, ...]
    captions: tuple[Caption, ...]
    words: tuple[str, ...]


def scene_of(whole: Whole, names: Names, *, min_score: float, longest_px: int) -> Scene:
    """What to draw of a sample; ShardError where there is nothing to draw, as its picture, captions
    or objects are not valid."""
    sample = whole.sample
    texts = captions_of(sample)
    if sample.objects is not None:
        check_objects(sample.objects)
    picture = reduced(sample.image, longest_px=longest_px)
    size = (picture.width, picture.height)
    truth = _Truth(sample.info.get("truth"), size)
    words = [*_odd_size(sample, size)]
    if sample.objects is None:
        marks = truth.marks()
        phrases = truth.phrases(len(texts))
        num_weak = 0
    else:
        marks = _marks(sample.objects, names, truth, size=size, min_score=min_score)
        phrases = _phrases(sample.info.get("phrases"), len(texts), sample.objects, len(marks))
        num_weak = int((sample.objects["score"] < min_score).sum())
        words += _too_many(len(sample.objects) - num_weak)
        words += _odd_boxes(sample.objects[: len(marks)], size)
        if phrases is None:
            words.append("Phrases are left out: they do not fit the captions and objects.")
    found = phrases or [[] for _ in texts]
    return Scene(
        key=sample.key,
        shard=whole.shard,
        picture=picture,
        marks=marks,
        has_objects=sample.objects is not None,
        num_weak=num_weak,
        truth=truth.boxes if sample.objects is not None else (),
        captions=tuple(_caption(text, own) for text, own in zip(texts, found)),
        words=tuple(words),
    )


def captions_of(sample: Sample) -> list[str]:
    """The captions; ShardError where they are no texts."""
    captions = sample.info["captions"]
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise ShardError(f"captions: got {captions!r:.80}, expected a list of str")
    return captions


def _odd_size(sample: Sample, size: tuple[int, int]) -> list[str]:
    reported = (sample.info["width"], sample.info["height"])
    if reported == size:
        return []
    said = f"{reported[0]!s:.12} × {reported[1]!s:.12}"
    return [f"The json says {said} pixels, the picture has {size[0]} × {size[1]}."]


def _too_many(number: int) -> list[str]:
    return [f"The first {_MOST_MARKS} of {number} objects are drawn."] * (number > _MOST_MARKS)


def _odd_boxes(objects: np.ndarray, size: tuple[int, int]) -> list[str]:
    """A note where boxes reach beyond the picture: they may be those of another size."""
    low, high = objects["box"][:, :2], objects["box"][:, 2:]
    outside = (low < -_OUTSIDE_PX).any(axis=1) | (high > np.array(size) + _OUTSIDE_PX).any(axis=1)
    number = int(outside.sum())
    if not number:
        return []
    return [f"{number} of {len(objects)} boxes reach beyond the picture's edge."]


def _marks(
    objects: np.ndarray, names: Names, truth: _Truth, *, size: tuple[int, int], min_score: float
) -> tuple[Mark, ...]:
    """The objects [O] of at least that score, which are the first ones; not very many."""
    strong = objects[: int((objects["score"] >= min_score).sum())][:_MOST_MARKS]
    return tuple(
        _mark(row, number, names, truth, size) for number, row in enumerate(strong, start=1)
    )


def _mark(row: np.void, number: int, names: Names, truth: _Truth, size: tuple[int, int]) -> Mark:
    label = names.label(int(row["label"]))
    attribute = names.attribute_of(row)
    top = list(zip(row["top_label"].tolist(), row["top_score"].tolist()))[:_NUM_TOP]
    box = row["box"].tolist()
    return Mark(
        number=number,
        box=_cut(box, size),
        label=label,
        attribute=attribute,
        score=float(row["score"]),
        attribute_score=float(row["attribute_score"]) if attribute is not None else None,
        soft=tuple((names.label(index), score) for index, score in top),
        true=truth.holds(box, label, names),
    )


def _cut(box: Sequence[float], size: tuple[int, int]) -> Box:
    """The part of a box inside the picture, at its edge if there is none."""
    limits = (*size, *size)
    x0, y0, x1, y1 = (min(max(float(side), 0.0), end) for side, end in zip(box, limits))
    return x0, y0, x1, y1


class _Truth:
    """A sample's true objects as stages.ingest.truth writes them; none where they are not valid."""

    def __init__(self, raw: object, size: tuple[int, int]) -> None:
        self.boxes: tuple[Box, ...] = ()
        self._raw: dict[str, Any] = {}
        if not isinstance(raw, dict):
            return
        boxes, labels = _boxes(raw.get("boxes")), raw.get("labels")
        if boxes is not None and _are_texts(labels, len(boxes)):
            self.boxes = tuple(_cut(box, size) for box in boxes)
            self._raw = raw

    def marks(self) -> tuple[Mark, ...]:
        """The true objects as marks."""
        attributes = self._raw.get("attributes")
        if not isinstance(attributes, list) or len(attributes) != len(self.boxes):
            attributes = [None] * len(self.boxes)
        rows = zip(self.boxes, self._raw.get("labels", []), attributes)
        return tuple(
            Mark(
                number=number,
                box=box,
                label=label,
                attribute=attribute if isinstance(attribute, str) and attribute else None,
            )
            for number, (box, label, attribute) in enumerate(rows, start=1)
        )

    def phrases(self, num_captions: int) -> list[list[Phrase]] | None:
        """A list a caption of the phrases whose object is known; None where unknown."""
        raw = self._raw.get("phrases")
        if not isinstance(raw, list) or len(raw) != num_captions:
            return None
        try:
            return [
                [_true_phrase(phrase, len(self.boxes)) for phrase in phrases] for phrases in raw
            ]
        except (TypeError, KeyError, ValueError):
            return None

    def holds(self, box: Sequence[float], label: str, names: Names) -> bool | None:
        """Whether a true object of that label is there; None where the truth is not known, or uses
        other label names than the teacher."""
        if not self._raw or not set(self._raw["labels"]) <= set(names.labels):
            return None
        return is_true(box, label, self._raw)


def _boxes(raw: object) -> list[list[float]] | None:
    """A list of boxes; None where it is something else."""
    if isinstance(raw, list) and all(
        isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box)) for box in raw
    ):
        return raw
    return None


def _are_texts(raw: object, number: int) -> bool:
    return (
        isinstance(raw, list) and len(raw) == number and all(isinstance(text, str) for text in raw)
    )


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= 1e9


def _true_phrase(raw: Mapping[str, Any], num_objects: int) -> Phrase:
    start, end = (_whole(raw[name]) for name in ("start", "end"))
    rows = [_whole(row) for row in object_rows(raw)]
    if not all(0 <= row < num_objects for row in rows):
        raise ValueError
    return Phrase(start=start, end=end, numbers=tuple(row + 1 for row in rows), similarity=None)


def _phrases(
    raw: object, num_captions: int, objects: np.ndarray, num_marks: int
) -> list[list[Phrase]] | None:
    """A list a caption of its phrases with the nearest of the first `num_marks` objects [O]; None
    where what is there has not the form that distill gives it, an empty one where there is none."""
    if raw is None:
        return [[] for _ in range(num_captions)]
    if not isinstance(raw, list) or len(raw) != num_captions:
        return None
    try:
        return [[_phrase(one, len(objects), num_marks) for one in phrases] for phrases in raw]
    except (TypeError, KeyError, ValueError):
        return None


def _phrase(raw: Mapping[str, Any], num_objects: int, num_marks: int) -> Phrase:
    similarities = raw["similarity"]
    if (
        not isinstance(similarities, list)
        or len(similarities) != num_objects
        or not all(map(_is_finite, similarities))
    ):
        raise ValueError
    own = similarities[:num_marks]
    best = max(own, default=0.0)
    numbers = tuple(
        number
        for number, value in enumerate(own, start=1)
        if best > 0 and value >= best - _SAME_SIMILARITY
    )
    return Phrase(
        start=_whole(raw["start"]),
        end=_whole(raw["end"]),
        numbers=numbers,
        similarity=best,
        similarities=tuple(own),
    )


def _whole(value: object) -> int:
    if type(value) is not int:
        raise ValueError
    return value


def _caption(text: str, phrases: Sequence[Phrase]) -> Caption:
    """With the phrases that lie in the text, each behind the one before."""
    kept: list[Phrase] = []
    for phrase in sorted(phrases, key=lambda one: one.start):
        if (kept[-1].end if kept else 0) <= phrase.start < phrase.end <= len(text):
            kept.append(phrase)
    return Caption(text=text, phrases=tuple(kept))
