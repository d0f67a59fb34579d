"""The benchmark of operators and reads of an extraction."""

from __future__ import annotations

from benchmarks.detector.counts import extraction_counts


def test_an_extraction_waits_seldom() -> None:
    """Bounds a little above what was counted, 537 and 12: what is done picture by picture, or
    a copy a field, would be beyond them. (With 1,000 proposals in batches of eight: 224 and
    4.9.)"""
    num_operators, num_reads = extraction_counts(2, num_proposals=100)
    assert num_operators < 560 and num_reads < 13
