"""Progress off a terminal: lines, not bars."""

from __future__ import annotations

import re

import pytest

from stages import progress
from stages.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands at clock[0] seconds."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_ten_seconds(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: a clock of ours. 4 units in 11 s of 10 in all: 0.3636/s, 16.5 s left; nothing
    between; the end has its own line. No escape codes."""
    with Progress("distill", total=10, unit="pictures") as bar:
        for _ in range(4):
            clock[0] += 2.75
            bar.advance(loss=0.123456)
        for _ in range(6):
            clock[0] += 0.5
            bar.advance(loss=0.1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "distill: 4/10 pictures  0.3636/s  16 s left  loss 0.1235"
    assert lines[1:] == [f"distill: 10/10 pictures  {10 / 14:.4g}/s  0 s left"]
    assert not re.search(r"[\x1b\r]", "".join(lines))


def test_what_an_earlier_run_did_is_not_this_ones_speed(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: 90 of 100 were there; 5 more in 20 s are 0.25/s, and 5 left take 20 s."""
    with Progress("pretrain", total=100, unit="steps", start=90) as bar:
        clock[0] += 20
        bar.advance(5)
    assert capsys.readouterr().out.splitlines()[0] == "pretrain: 95/100 steps  0.25/s  20 s left"


def test_other_ranks_are_silent(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: nothing is printed, and the count is kept all the same."""
    with Progress("pretrain", total=3, unit="steps", show=False) as bar:
        clock[0] += 60
        bar.advance(3)
        bar.log("hello")
    assert bar.done == 3 and capsys.readouterr().out == ""


def test_said_lines_stay_and_an_error_has_no_last_line(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: the words as they are, in one line, brackets too; no "0 s left" after a failure."""
    said = f"cannot read [images] {'of a long name ' * 10}3"
    with pytest.raises(RuntimeError):
        with Progress("x", total=3, unit="y") as bar:
            bar.advance()
            bar.log(said)
            raise RuntimeError
    assert capsys.readouterr().out == f"{said}\n"
