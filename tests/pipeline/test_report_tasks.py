"""The report's section on downstream tasks."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.pages.html import html_text
from pipeline.pages.report.tasks import tasks_section
from pipeline.runner.run_folder import RunFolder


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
    (folder / "predictions.jsonl").write_text('{"id": "1#0", "prediction": {"label": "neutral"}}\n')
    section = tasks_section(run)
    assert section is not None
    text = html_text(section.element())
    for shown in ("62.5", "39.0", "726", "yes", "1#0", "neutral"):
        assert shown in text
