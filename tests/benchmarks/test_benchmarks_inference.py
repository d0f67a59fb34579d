"""The inference benchmark runs: regions are found, parts add up, ratios are printed."""

from __future__ import annotations

import re
import shutil

import pytest

from benchmarks.transfer import inference


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile has no C++ compiler here")
def test_it_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: as many regions as asked for, and parts that add up to the whole pass."""
    monkeypatch.setattr(
        "sys.argv",
        [
            "inference",
            "--size",
            "tiny",
            "--rounds",
            "1",
            "--threads",
            "1",
            "--proposals",
            "60",
            "--regions",
            "5",
        ],
    )
    inference.main()
    printed = capsys.readouterr().out
    assert "60 proposals, 5 regions" in printed and "times as long" in printed
    for way in re.split(r"\n(?=\S)", printed)[-3:]:
        whole, *parts = (float(number) for number in re.findall(r"([\d.]+) s", way))
        assert len(parts) >= 4 and abs(sum(parts) - whole) < 0.02
