"""The teacher's part of the report; oracle: the loss that training computes."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

from pipeline.pages.html import html_text
from pipeline.pages.report import teacher
from pipeline.pages.thumbnails import Pictures
from pipeline.runner.run_folder import RunFolder
from stages.detector.training import losses


def test_the_report_calls_the_box_loss_l1_as_it_is_trained(tmp_path: Path) -> None:
    """Oracle: the training's own sums, of absolute differences and of nothing else."""
    run = RunFolder(tmp_path)
    run.teacher.mkdir(parents=True)
    lines = [{"step": step, "box": 1.0 / step, "anchor_box": 0.5} for step in (1, 2)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run.teacher / "metrics.jsonl").write_text(text)
    page = html_text(teacher.teacher_section(run, Pictures(run)).element())
    code = inspect.getsource(losses)
    assert code.count("wanted).abs().sum()") == 2 and "smooth" not in code
    assert "cross entropy, L1" in page and "smooth" not in page.lower()
