"""Grounding and object labels, on students that are made to answer as the test wants."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from pretrain_fixtures import tiny_student, toy_samples, toy_tokenizer

from sharding.format.schema import Sample
from stages.ingest.sources.toy import SHAPES
from stages.transfer.evaluation.grounding import Candidates, best_box, ground, label_objects
from stages.transfer.predictor import Predictor

SAMPLES = toy_samples(24, 6)


@pytest.fixture
def predictor() -> Predictor:
    """A tiny student; a 96 px scene has 2 x 2 cells, each 48 px of the original."""
    return Predictor(student=tiny_student(), tokenizer=toy_tokenizer())


def _picture(width: int, height: int, boxes: Sequence[Sequence[float]], caption: str) -> Sample:
    """A grey picture; phrase i of the caption is its word i and means box i."""
    data = io.BytesIO()
    Image.new("RGB", (width, height), (90, 120, 90)).save(data, "PNG")
    starts = [0]
    for word in caption.split():
        starts.append(starts[-1] + len(word) + 1)
    truth = {
        "boxes": [list(map(float, box)) for box in boxes],
        "labels": list(SHAPES[: len(boxes)]),
        "phrases": [
            [
                {"start": s, "end": e - 1, "objects": [i]}
                for i, (s, e) in enumerate(zip(starts, starts[1:]))
            ]
        ],
    }
    info = {"captions": [caption], "width": width, "height": height, "truth": truth}
    return Sample(key="p", image=data.getvalue(), extension="png", info=info)


def _point_at(predictor: Predictor, cells: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The alignment head answers with these cells, one a call."""
    answers = iter(cells)

    def align(phrases: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        assert phrases.shape[:2] == (1, 1)
        similarity = torch.zeros(1, 1, regions.shape[1])
        similarity[0, 0, next(answers)] = 5
        return similarity

    monkeypatch.setattr(predictor.student.align_head, "forward", align)
    monkeypatch.setattr("stages.transfer.evaluation.grounding.best_box", lambda *_: {})


@torch.no_grad()
def test_hits_by_hand(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a 192 x 96 picture is seen at 64 x 32, so 2 x 4 cells of 48 px, middles at 24, 72,
    120, 168. Cell 2 (120, 24) is in the first box; cell 5 (72, 72) lies on the second's right
    edge, which is not its own; cell 4 (24, 72) is in the third. Chance: the shares of the boxes."""
    boxes = [(100, 0, 140, 48), (0, 48, 72, 96), (0, 48, 72, 96)]
    sample = _picture(192, 96, boxes, "red green blue")
    _point_at(predictor, [2, 5, 4], monkeypatch)
    scores, shown = ground(predictor, [sample], 5)
    score = scores["phrase_grounding"]
    assert score["value"] == pytest.approx(2 / 3) and score["num"] == 3
    area = 192 * 96
    assert score["chance"] == pytest.approx((40 * 48 + 2 * 72 * 48) / area / 3)
    phrases = shown[0]["phrases"]
    assert [p["text"] for p in phrases] == ["red", "green", "blue"]
    assert [p["point"] for p in phrases] == [[120, 24], [72, 72], [24, 72]]
    assert [p["hit"] for p in phrases] == [True, False, True]
    assert (phrases[0]["rows"], phrases[0]["columns"], phrases[0]["cell_px"]) == (2, 4, [48, 48])
    assert sum(phrases[0]["heat"]) == pytest.approx(1, abs=1e-3)


@torch.no_grad()
def test_a_portrait_with_a_ragged_edge(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: 40 x 60 pixels are seen at 32 x 48: 3 x 2 cells of 20 px; cell 5 is the last row's
    right one, its middle (30, 50)."""
    _point_at(predictor, [5, 1], monkeypatch)
    sample = _picture(40, 60, [(20, 40, 40, 60), (20, 40, 40, 60)], "red green")
    scores, shown = ground(predictor, [sample], 1)
    score = scores["phrase_grounding"]
    assert [p["point"] for p in shown[0]["phrases"]] == [[30, 50], [30, 10]]
    assert score["value"] == 0.5


@torch.no_grad()
def test_a_phrase_is_the_mean_of_its_own_pieces(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the student's outputs at the pieces of each phrase, found here by encoding the words
    before it."""
    sample, seen = SAMPLES[0], []

    def align(phrases: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        seen.append(phrases[0, 0])
        return torch.zeros(1, 1, regions.shape[1])

    monkeypatch.setattr(predictor.student.align_head, "forward", align)
    monkeypatch.setattr("stages.transfer.evaluation.grounding.best_box", lambda *_: {})
    ground(predictor, [sample], 0)
    captions = sample.info["captions"]
    tokens, _ = predictor.read(captions)
    hidden = predictor.student.fuse(
        predictor.encode_image([sample]), picture=torch.zeros(4, dtype=torch.long), input_ids=tokens
    )
    wanted = []
    for row, phrases in enumerate(sample.info["truth"]["phrases"]):
        for p in phrases:
            first = len(predictor.tokenizer(captions[row][: p["start"]])["input_ids"]) - 1
            last = len(predictor.tokenizer(captions[row][: p["end"]])["input_ids"]) - 1
            wanted.append(hidden.text[row, first:last].mean(dim=0))
    assert len(seen) == len(wanted) > 7
    torch.testing.assert_close(torch.stack(seen), torch.stack(wanted), rtol=1e-4, atol=1e-5)


def _answer(
    predictor: Predictor, labels: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """The object head answers with these labels, as many a call as it is asked; the calls' sizes
    are returned."""
    rest, calls = list(labels), []

    def answer(region: torch.Tensor) -> tuple[torch.Tensor, Any]:
        calls.append(len(region))
        now = [rest.pop(0) for _ in region]
        return torch.eye(len(SHAPES))[now], None

    monkeypatch.setattr(predictor.student.object_head, "forward", answer)
    return calls


@torch.no_grad()
def test_labels_by_hand(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a picture's objects at once, against the truth, or the teacher where there is none
    or it names what the student never learned; pictures without objects are left out. Six right of
    all; the commonest label's share is chance."""
    known, foreign, blank = SAMPLES[:3]
    foreign = replace(
        foreign,
        info={**foreign.info, "truth": {**foreign.info["truth"], "labels": ["giraffe"] * 9}},
    )
    assert foreign.objects is not None and blank.objects is not None
    empty = replace(blank, objects=blank.objects[:0], info={**blank.info, "truth": {}})
    labels = [SHAPES.index(label) for label in known.info["truth"]["labels"]]
    labels += foreign.objects["label"].tolist()
    reported = [(label + (i == 0)) % len(SHAPES) for i, label in enumerate(labels)]
    calls = _answer(predictor, reported, monkeypatch)
    score = label_objects(predictor, [known, foreign, empty])
    assert calls == [len(known.info["truth"]["labels"]), len(foreign.objects)]
    assert score["num"] == len(labels)
    assert score["value"] == pytest.approx(1 - 1 / len(labels))
    assert score["chance"] == pytest.approx(max(map(labels.count, labels)) / len(labels))


@torch.no_grad()
def test_regions_are_the_cells_of_the_boxes(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the mean of the outputs at cells picked by hand: a 192 x 96 picture has 2 x 4 cells
    of 48 px; the left half of it is cells 0, 1, 4, 5, its last column 3 and 7."""
    sample = _picture(192, 96, [(0, 0, 96, 96), (145, 0, 192, 96)], "red green")
    pooled: list[torch.Tensor] = []

    def answer(region: torch.Tensor) -> tuple[torch.Tensor, Any]:
        pooled.append(region)
        return torch.zeros(len(region), len(SHAPES)), None

    monkeypatch.setattr(predictor.student.object_head, "forward", answer)
    label_objects(predictor, [sample])
    tokens, _ = predictor.read(["red green"])
    cells = predictor.student.fuse(
        predictor.encode_image([sample]), picture=torch.tensor([0]), input_ids=tokens
    ).cells[0]
    wanted = torch.stack([cells[[0, 1, 4, 5]].mean(dim=0), cells[[3, 7]].mean(dim=0)])
    torch.testing.assert_close(pooled[0], wanted, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_phrase_of_several_boxes_is_hit_in_any(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: by hand. Cell 2's middle (120, 24) is in the second box; the picture's center (96,
    48) in neither; the boxes overlap, so together they cover 60 x 48 + 20 x 20 pixels. A phrase
    without boxes is left out."""
    sample = _picture(192, 96, [(80, 0, 140, 48), (130, 0, 150, 68)], "both none")
    (phrases,) = sample.info["truth"]["phrases"]
    phrases[0]["objects"], phrases[1]["objects"] = [0, 1], []
    _point_at(predictor, [2], monkeypatch)
    scores, shown = ground(predictor, [sample], 1)
    covered = 60 * 48 + 20 * 68 - 10 * 48
    assert scores == {
        "phrase_grounding": {
            "value": 1.0,
            "chance": pytest.approx(covered / (192 * 96)),
            "center": 0.0,
            "num": 1,
        }
    }
    assert len(shown[0]["phrases"][0]["boxes"]) == 2


@torch.no_grad()
def test_the_best_box_is_the_most_similar_candidate(predictor: Predictor) -> None:
    """Oracle: cells that are unit vectors, a phrase equal to the second one: the candidate that
    covers only the second cell wins; it overlaps the true box by 2/3, two of three do by half."""
    cells = torch.eye(4, 8)
    candidates = Candidates(
        boxes=torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [20, 0, 30, 20]]),
        cells=torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 1]]),
    )
    true = torch.tensor([[20.0, 0, 30, 15], [50, 50, 60, 60]])
    found = best_box(predictor, cells[1], candidates, cells, true)
    # The largest candidate, the third, overlaps by 3/4.
    assert found == {"value": 1.0, "chance": pytest.approx(2 / 3), "largest": 1.0}
    assert best_box(predictor, cells[1], None, cells, true) == {}
