"""Boxes fitted to their picture; oracle: boxes placed by hand on 100 x 50 pixels."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image, ImageOps

from stages.ingest.truth import finite_numbers, fit_truth, keep_captions

INSIDE = [10.0, 10.0, 20.0, 20.0]


def fit(*boxes: list[float], **more: Any) -> tuple[dict[str, Any] | None, list[str]]:
    truth = {
        "boxes": list(boxes),
        "labels": [f"label {row}" for row in range(len(boxes))],
        "attributes": [None] * len(boxes),
        **more,
    }
    return fit_truth(truth, width=100, height=50, size_px=None)


def test_boxes_inside_stay_as_they_are() -> None:
    truth, notes = fit(INSIDE, [0.0, 0.0, 100.0, 50.0])
    assert truth is not None and not notes
    assert truth["boxes"] == [INSIDE, [0.0, 0.0, 100.0, 50.0]]


@pytest.mark.parametrize(
    ("box", "reported"),
    [
        ([5.0, 5.0, 5.0, 9.0], "box without area: [5, 5, 5, 9]"),
        ([9.0, 5.0, 5.0, 9.0], "box without area"),
        ([100.0, 5.0, 120.0, 9.0], "box outside of the picture: [100, 5, 120, 9] on 100 x 50"),
        ([5.0, -20.0, 15.0, -9.0], "box outside of the picture"),
    ],
)
def test_useless_boxes_go_with_a_note_and_rows_stay_together(
    box: list[float], reported: str
) -> None:
    truth, notes = fit(box, INSIDE)
    assert truth is not None
    assert truth["boxes"] == [INSIDE] and truth["labels"] == ["label 1"]
    assert truth["attributes"] == [None]
    assert len(notes) == 1 and notes[0].startswith(reported) and notes[0].endswith("(object 0)")


def test_boxes_that_stick_out_are_cut() -> None:
    truth, notes = fit([-30.0, 10.0, 40.0, 80.0])
    assert truth is not None and truth["boxes"] == [[0.0, 10.0, 40.0, 50.0]]
    assert notes == ["box cut to the picture: [-30, 10, 40, 80] on 100 x 50 (object 0)"]


def test_rounding_is_cut_without_a_word() -> None:
    truth, notes = fit([-0.4, 10.0, 40.0, 50.9])
    assert truth is not None and truth["boxes"] == [[0.0, 10.0, 40.0, 50.0]] and not notes


def test_phrases_follow_their_objects() -> None:
    """Object 1 becomes row 0; the phrase of the dropped object 0 goes."""
    phrases = [[{"start": 0, "end": 3, "objects": [1]}, {"start": 8, "end": 9, "objects": [0]}]]
    truth, _ = fit([5.0, 5.0, 5.0, 5.0], INSIDE, phrases=phrases)
    assert truth is not None and truth["phrases"] == [[{"start": 0, "end": 3, "objects": [0]}]]


def test_boxes_for_another_size_are_not_used() -> None:
    truth = {"boxes": [INSIDE], "labels": ["cat"], "attributes": [None]}
    fitted, notes = fit_truth(truth, width=100, height=50, size_px=(50, 100))
    assert fitted is None and notes == [
        "truth dropped: made for 50 x 100 pixels, the picture has 100 x 50: another shape"
    ]
    assert fit_truth(truth, width=100, height=50, size_px=(100, 50)) == (truth, [])


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_made_for_the_stored_orientation_are_turned_and_noted(
    orientation: int, scale: int
) -> None:
    """They are known by the sizes in the file. Oracle: where Pillow turns the pixels of a painted
    box; an annotation at twice the size is scaled, too."""
    stored = Image.new("L", (40, 30))
    stored.paste(255, (4, 6, 15, 28))
    stored.getexif()[0x0112] = orientation
    upright = ImageOps.exif_transpose(stored)
    assert upright.size == (30, 40)
    truth = {
        "boxes": [[scale * v for v in (4.0, 6.0, 15.0, 28.0)]],
        "labels": ["cat"],
        "attributes": [None],
    }
    fitted, notes = fit_truth(
        truth, width=30, height=40, size_px=(40 * scale, 30 * scale), orientation=orientation
    )
    assert fitted is not None and fitted["boxes"] == [list(upright.getbbox() or ())]
    assert [note.partition(":")[0] for note in notes] == ["boxes turned"]
    # Without such an orientation they are of another picture.
    assert fit_truth(truth, width=30, height=40, size_px=(40 * scale, 30 * scale))[0] is None


def test_truth_of_captions_follows_the_captions_kept() -> None:
    truth = {"boxes": [], "captions": [True, False, True], "phrases": [["a"], ["b"], ["c"]]}
    assert keep_captions(truth, [0, 2]) == {
        "boxes": [],
        "captions": [True, True],
        "phrases": [["a"], ["c"]],
    }


@pytest.mark.parametrize(
    "values",
    [
        None,
        3,
        [1, 2],
        [1, 2, "3"],
        [1, 2, float("nan")],
        [1, 2, float("inf")],
        [1, 2, 10**400],
        [1, 2, True],
    ],
)
def test_finite_numbers_refuses_the_rest(values: object) -> None:
    assert finite_numbers(values, count=3) is None
    assert finite_numbers([1, 2.5, -3], count=3) == [1.0, 2.5, -3.0]
