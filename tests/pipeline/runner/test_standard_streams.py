"""Standard streams that are closed, or that nobody reads: no work ends with them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.runner.standard_streams import outlive_readers

ROOT = Path(__file__).resolve().parents[3]


def _wrapped(descriptor: int) -> io.TextIOWrapper:
    raw = io.FileIO(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", line_buffering=True)


def test_a_reader_that_has_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As below `| head -1`. Oracle: the line before it went; later ones go nowhere, without an
    error, where Python's own stdout raises one."""
    reader, writer = os.pipe()
    plain = _wrapped(os.dup(writer))
    monkeypatch.setattr(sys, "stdout", _wrapped(writer))
    outlive_readers()
    print("first", flush=True)
    assert os.read(reader, 100) == b"first\n"
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        print("x", file=plain, flush=True)
    print("second", flush=True)
    print("third", flush=True)
    os.close(writer)


def test_a_full_disk_loses_lines_only_while_it_is_full(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Oracle: the kernel's device that is always full, and a file in its place afterwards."""
    descriptor = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(sys, "stderr", _wrapped(descriptor))
    outlive_readers()
    print("lost", file=sys.stderr, flush=True)
    with open(tmp_path / "log", "wb") as log:
        os.dup2(log.fileno(), descriptor)
    print("kept", file=sys.stderr, flush=True)
    assert (tmp_path / "log").read_text() == "kept\n"
    os.close(descriptor)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_stay_free_of_files(closed: str, tmp_path: Path) -> None:
    """Oracle: the file that is opened next is none of the three, and printing continues."""
    code = (
        "import os, sys; from pipeline.runner.standard_streams import open_closed_streams\n"
        "open_closed_streams(); file = open(sys.argv[1], 'w')\n"
        "print('x', flush=True); print('x', file=sys.stderr, flush=True); os.read(0, 1)\n"
        "file.write(str(file.fileno())); file.close()\n"
    )
    command = ["bash", "-c", f'"$0" -c "$1" "$2" {closed}', sys.executable, code]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [*command, str(tmp_path / "number")], env=env, stdin=subprocess.DEVNULL, capture_output=True
    )
    assert ended.returncode == 0, ended.stderr
    assert int((tmp_path / "number").read_text()) > 2


def test_output_that_cannot_be_written_hides_no_error() -> None:
    """Oracle: the error that was on its way when the disk was full, alone."""
    code = (
        "from pipeline.runner.standard_streams import flush_output\n"
        "try:\n    print('x')\n    raise ValueError('the cause')\nfinally:\n    flush_output()\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", code]
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env
        )
    assert ended.stderr.rstrip().endswith("ValueError: the cause")
    assert "No space" not in ended.stderr


@pytest.mark.parametrize("is_full", [True, False])
def test_output_that_cannot_be_written_is_said_in_words(is_full: bool) -> None:
    """Little output stays in Python's buffer until its exit. Oracle: a full device's error and fix,
    and nothing of a reader that has gone; no exception that Python ignored."""
    reader, writer = os.pipe()
    os.close(reader)
    out = os.open("/dev/full", os.O_WRONLY) if is_full else writer
    ended = subprocess.run(
        [sys.executable, "-m", "boxless", "--version"],
        stdout=out,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        timeout=300,
    )
    said = "boxless: error: No space left on device; the disk is full: free some space"
    assert ended.stderr.startswith(said) if is_full else ended.stderr == ""
    assert "ignored" not in ended.stderr and ended.returncode == (2 if is_full else 1)
    for descriptor in {out, writer}:
        os.close(descriptor)
