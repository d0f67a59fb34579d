"""The report in headless Chromium, at the width of a phone and of a desktop. Oracle: the browser's
own layout and its console. Skipped where no Chromium is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import CHROMIUM, measure
from report_runs import whole_run

from pipeline.pages.report.page import write_report


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width, is_dark", [(390, False), (390, True), (1280, False)])
def test_page_fits_and_loads_without_a_complaint(tmp_path: Path, width: int, is_dark: bool) -> None:
    page = write_report(whole_run(tmp_path / "run")).read_text("utf-8")
    found, said = measure(page, tmp_path, width=width, is_dark=is_dark)
    assert found["wide"] <= 0 and found["outside"] == []
    assert found["pictures"] > 5 and found["undecoded"] == 0
    assert found["sections"] == 13 and found["scripts"] == 0
    assert found["ground"] == ("rgb(18, 19, 24)" if is_dark else "rgb(247, 247, 245)")
    assert "CONSOLE" not in said
