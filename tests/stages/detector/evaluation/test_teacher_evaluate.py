"""AP50 against cases that can be worked out by hand and against a slow definition."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch

from sharding.format.schema import object_dtype
from stages.detector.evaluation.coco_metrics import SCORES
from stages.detector.evaluation.evaluate import (
    _attribute_accuracy,
    average_precision,
    score_teacher,
    scores_in_words,
)
from stages.detector.training.labeled_pictures import NO_ATTRIBUTE, Truth
from stages.distributed import Ranks

Row = tuple[list[float], float, int]
LEFT, RIGHT = [0.0, 0, 10, 10], [20.0, 0, 30, 10]
NEAR_LEFT = [0.0, 0, 10, 5]  # IoU 0.5 with LEFT, which counts
OFF_LEFT = [0.0, 0, 10, 4.9]  # just below


def found(*rows: Row) -> np.ndarray:
    array = np.zeros(len(rows), object_dtype(feature_size=1, num_top=1, attributes=True))
    for index, (box, score, label) in enumerate(sorted(rows, key=lambda row: -row[1])):
        array[index]["box"], array[index]["score"], array[index]["label"] = box, score, label
    return array


def truth(*rows: tuple[list[float], int], attributes: list[int] | None = None) -> Truth:
    return Truth(
        torch.tensor([box for box, _ in rows]).view(-1, 4),
        torch.tensor([label for _, label in rows], dtype=torch.long),
        torch.tensor(attributes or [NO_ATTRIBUTE] * len(rows), dtype=torch.long),
    )


def test_everything_found_is_1_and_nothing_is_0() -> None:
    """Oracle: by hand; a label that never occurs has no AP, even when it was said."""
    truths = [truth((LEFT, 0), (RIGHT, 1)), truth((RIGHT, 0))]
    perfect = [found((LEFT, 0.9, 0), (RIGHT, 0.8, 1), (LEFT, 0.7, 2)), found((RIGHT, 0.5, 0))]
    np.testing.assert_array_equal(average_precision(perfect, truths, 3), [1, 1, np.nan])
    nothing = [found(), found()]
    np.testing.assert_array_equal(average_precision(nothing, truths, 3), [0, 0, np.nan])


@pytest.mark.parametrize(
    "rows, expected",
    [
        ([(NEAR_LEFT, 0.9, 0)], 0.5),
        ([(OFF_LEFT, 0.9, 0)], 0.0),
        ([(LEFT, 0.9, 1)], 0.0),
        ([(LEFT, 0.9, 0), (LEFT, 0.8, 0), (RIGHT, 0.7, 0)], (1 + 2 / 3) / 2),
        ([(OFF_LEFT, 0.9, 0), (LEFT, 0.8, 0), (RIGHT, 0.7, 0)], 2 / 3),
        ([(OFF_LEFT, 0.9, 0), (LEFT, 0.8, 0)], 0.25),
    ],
)
def test_one_label_by_hand(rows: list[Row], expected: float) -> None:
    """Oracle: by hand for two true boxes: the bound of IoU, a wrong label, a box found twice
    counts against, a miss above two hits, where precision made to fall is 2/3 at both."""
    precision = average_precision([found(*rows)], [truth((LEFT, 0), (RIGHT, 0))], 2)
    assert precision[0] == pytest.approx(expected)


def test_scores_are_ranked_over_all_pictures() -> None:
    """Oracle: by hand; a hit of 0.3 in one picture stands behind a miss of 0.6 in the other."""
    truths = [truth((LEFT, 0)), truth()]
    precision = average_precision([found((LEFT, 0.3, 0)), found((LEFT, 0.6, 0))], truths, 1)
    assert precision[0] == pytest.approx(0.5)


def test_area_is_the_integral_over_recall() -> None:
    """Oracle: precision at recall r is the best precision at any recall from r on, integrated
    numerically over r for random hits and misses of one label on many pictures."""
    random = np.random.default_rng(0)
    hits, scores = random.random(60) < 0.6, random.permutation(60) / 64
    detections = [found((LEFT if hit else RIGHT, score, 0)) for hit, score in zip(hits, scores)]
    truths = [truth((LEFT, 0))] * 60
    ranked = hits[np.argsort(-scores)]
    recall = np.cumsum(ranked) / 60
    precision = np.cumsum(ranked) / np.arange(1, 61)
    at = (np.arange(60_000) + 0.5) / 60_000
    expected = np.mean([precision[recall >= r].max(initial=0) for r in at])
    assert average_precision(detections, truths, 1)[0] == pytest.approx(expected, abs=1e-4)


def test_attribute_accuracy_counts_found_boxes_of_known_attribute() -> None:
    """Oracle: by hand: one right, one wrong, one unknown, one not found; None when none counts."""
    truths = [
        truth((LEFT, 0), (RIGHT, 0), attributes=[3, 4]),
        truth((LEFT, 0), (RIGHT, 0), attributes=[NO_ATTRIBUTE, 3]),
    ]
    detections = [found((LEFT, 0.9, 0), (RIGHT, 0.8, 0)), found((LEFT, 0.9, 0))]
    for array in detections:
        array["attribute"] = 3
    assert _attribute_accuracy(detections, truths) == 0.5
    assert _attribute_accuracy(detections[1:], truths[1:]) is None


def test_scores_are_printed_in_words() -> None:
    """Oracle: by hand; a score that nothing counts for is a dash, and without true boxes there is
    nothing to tell."""
    coco = dict.fromkeys(SCORES, 0.25) | {"ap_small": None}
    commonest = {"value": 0.5, "num_labels": 2, "by_label": {"dog": 0.75, "man": 0.25}}
    scores = {"coco": coco, "ap50": {"value": 0.5}, "ap50_commonest": commonest}
    assert scores_in_words(scores) == [
        "COCO: AP 25.0%, AP50 25.0%, AP75 25.0%, small -, medium 25.0%, large 25.0%, AR 25.0%",
        "AP50 50.0%, of the 2 commonest labels 50.0%: dog 75.0%, man 25.0%",
    ]
    assert scores_in_words({**scores, "coco": None})[-1].endswith("pip install pycocotools")
    nothing = {"coco": None, "ap50": {"value": None}, "ap50_commonest": {}}
    assert scores_in_words(nothing) == []


class Pictures:
    """Seven pictures that are their own numbers; each has one object more than the one before."""

    def __len__(self) -> int:
        return 7

    def picture(self, index: int) -> int:
        return index

    def truth(self, index: int) -> Truth:
        return truth(*[([40.0 * i, 0, 40 * i + 20, 20 + index], i % 2) for i in range(index)])


class Right:
    """A teacher that finds every object of a picture."""

    label_names, attribute_names = ["dog", "cat"], []

    def prepare(self, picture: int) -> int:
        return picture

    def detect(self, pictures: list[int]) -> list[np.ndarray]:
        rows = zip(*Pictures().truth(pictures[0])[:2], strict=True)
        return [found(*[(box.tolist(), 0.9, int(label)) for box, label in rows])]


class SecondOfTwo(Ranks):
    """Rank 1 of two, which knows what rank 0 would have found in the pictures 0, 2, 4 and 6."""

    def gathered(self, value: Any) -> list[Any]:
        return [[Right().detect([index])[0] for index in range(0, 7, 2)], value]


def test_the_objects_of_two_ranks_are_those_of_their_pictures() -> None:
    """Oracle: a teacher that is right everywhere; objects beside another picture's would be wrong,
    and those of its own pictures alone would leave true boxes unfound."""
    teacher, pictures = cast(Any, Right()), cast(Any, Pictures())
    one = score_teacher(teacher, pictures)
    two = score_teacher(teacher, pictures, SecondOfTwo(rank=1, size=2))
    assert two["ap50"]["value"] == 1.0 and two == one
