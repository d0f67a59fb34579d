"""The report's section on downstream tasks."""

from __future__ import annotations

import io
import json
from pathlib import Path

from PIL import Image

from pipeline.pages.html import html_text
from pipeline.pages.report.scores import scores_section
from pipeline.pages.report.tasks import tasks_section
from pipeline.runner.run_folder import RunFolder


def _text(run: RunFolder) -> str:
    section = tasks_section(run)
    assert section is not None
    return html_text(section.element())


def test_scores_stand_beside_chance(tmp_path: Path) -> None:
    """Oracle: by hand; a run without tasks has no section, `evaluate` is none."""
    run = RunFolder(tmp_path)
    (run.transfer / "evaluate").mkdir(parents=True)
    (run.transfer / "evaluate" / "scores.json").write_text("{}")
    assert tasks_section(run) is None
    folder = run.transfer / "snli_ve"
    folder.mkdir()
    entry = {"value": 0.625, "chance": 0.39, "num": 726, "text_premise": True}
    (folder / "scores.json").write_text(json.dumps({"snli_ve_accuracy": entry}))
    left_out = {"train": {"picture missing": 1234}, "heldout": {}}
    (folder / "data.json").write_text(json.dumps({"left_out": left_out}))
    shown = ("62.5", "39.0", "726", "yes", "left out of training: picture missing", "1,234")
    assert all(words in _text(run) for words in shown)


def test_all_tasks_stand_beside_no_pretraining(tmp_path: Path) -> None:
    """Oracle: by hand: scores of transfer/all with both starts, curves, calibration, a picture."""
    run = RunFolder(tmp_path)
    folder = run.transfer / "all" / "vqa" / "pretrained"
    (folder / "training").mkdir(parents=True)
    entry = {"value": 0.9, "chance": 0.25, "num": 8}
    (folder / "scores.json").write_text(json.dumps({"vqa_accuracy": entry}))
    both = {"vqa_accuracy": {**entry, "not_pretrained": 0.444}}
    (run.transfer / "all" / "scores.json").write_text(json.dumps(both))
    lines = [{"step": n, "loss": 1 / n, "validation/vqa_accuracy": n / 10} for n in (1, 2)]
    (folder / "training" / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    picture = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(picture, "JPEG")
    (tmp_path / "a.jpg").write_bytes(picture.getvalue())
    example = {"id": "1", "images": [str(tmp_path / "a.jpg")], "text": "What color?", "said": "red",
               "truth": "blue", "right": 0.0, "confidence": 0.75}  # fmt: skip
    bins = [{"num": 4, "confidence": c, "right": c} for c in (0.25, 0.75)]
    outcomes = {"calibration": bins, "expected_calibration_error": 0.125, "examples": [example]}
    (folder / "outcomes.json").write_text(json.dumps(outcomes))
    text = _text(run)
    for shown in ("90.0", "44.4", "25.0", "12.5", "Calibration", "Held-out scores", "Training loss",
                  "What color?", "says “red”", "truth: “blue”", "data:image/jpeg"):  # fmt: skip
        assert shown in text, shown


def test_a_place_is_drawn_on_its_picture(tmp_path: Path) -> None:
    """Oracle: by hand: of a picture of 80 x 60 the cross at a quarter and a half, and the box."""
    run = RunFolder(tmp_path)
    folder = run.transfer / "grounding"
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps({"pointing": {"value": 1.0, "num": 1}}))
    Image.new("RGB", (80, 60), "red").save(tmp_path / "a.png")
    example = {"images": [str(tmp_path / "a.png")], "text": "a dog", "said": "(0.25 0.50)",
               "truth": "", "right": 1.0, "point": [0.25, 0.5], "boxes": [[0, 0.5, 0.5, 1]]}  # fmt: skip
    (folder / "outcomes.json").write_text(json.dumps({"examples": [example]}))
    text = _text(run)
    assert 'class="true" x="0.0" y="30.0" width="40.0" height="30.0"' in text
    assert 'class="cross" d="M17.3 30.0h5.3M20.0 27.3v5.3"' in text


def test_a_score_stands_beside_the_constant_answer(tmp_path: Path) -> None:
    """Oracle: by hand: pointing beside chance and the picture's center, the best box beside the
    largest one."""
    run = RunFolder(tmp_path)
    (run.transfer / "evaluate").mkdir(parents=True)
    entries = {
        "phrase_grounding": {"value": 0.66, "chance": 0.31, "center": 0.55, "num": 9},
        "phrase_best_box": {"value": 0.4, "chance": 0.2, "largest": 0.375, "num": 9},
    }
    (run.transfer / "evaluate" / "scores.json").write_text(json.dumps(entries))
    page = html_text(scores_section(run).element())
    for words, share in (("the picture's center", "55.0"), ("the largest box", "37.5")):
        assert words.partition("'")[0] in page and share in page
