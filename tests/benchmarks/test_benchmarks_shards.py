"""The benchmark of shards in small: that it runs, and that its readers give what was written."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.sharding import shard_formats, shards
from benchmarks.sharding.shard_formats import make_samples, read_ours, rows_of, write_ours


def test_every_table_has_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: the ways by name, each with a rate, and shares of time that add up to all of it."""
    for module in (shard_formats, shards):
        monkeypatch.setattr(module, "SAMPLES_A_SHARD", 4)
    arguments = ["shards", "--samples", "10", "--rounds", "1", "--folders", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    shards.main()
    printed = capsys.readouterr().out
    rates = re.findall(r"^  (ours|webdataset, \D+?)  +([\d,]+)  +([\d,]+)", printed, re.MULTILINE)
    assert [name for name, _, _ in rates].count("ours") == 5
    assert [name for name, _, _ in rates].count("webdataset, an npy a field") == 5
    shares = re.findall(r"^  [a-zA-Z ]+[\d,.]+  +([\d.]+) \(", printed, re.MULTILINE)
    assert len(shares) == 7 and sum(map(float, shares)) == pytest.approx(100, abs=0.1)
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_gives_other_samples_is_found(tmp_path: Path) -> None:
    """Oracle: samples that differ in one number, or are one fewer, than those in the folder."""
    samples = make_samples(3, seed=0)
    write_ours(tmp_path, samples)
    shards.check_same(read_ours(tmp_path), samples)
    with pytest.raises(AssertionError, match="1 samples missing"):
        shards.check_same(rows_of(samples[:2]), samples)
    other = samples[1].objects.copy()
    other["feature"][-1, -1] = np.float16(2)
    changed = dataclasses.replace(samples[1], objects=other)
    with pytest.raises(AssertionError, match="feature"):
        shards.check_same(rows_of([samples[0], changed, samples[2]]), samples)
