"""The benchmark of planned batches."""

from __future__ import annotations

import pytest

from benchmarks.detector.planned_batches import planned_batch, shards_of, waiting_batch


def test_batches_of_a_few_sizes_are_counted() -> None:
    """Oracle: by hand. Of 9 pictures of a and a b at each end, batches of 2: planned 4 + 1 and 1
    of both b; waiting, the first b leaves after 8 others and each b is alone. Padded to 8 px, 10
    times 8 x 8 of 4 x 8 pixels are half padding."""
    a, b = (4, 8), (8, 4)
    shards = [[b, *[a] * 9, b]]
    assert waiting_batch(shards, 2) == pytest.approx(11 / 7)
    assert planned_batch(shards, 2, 1) == (pytest.approx(11 / 6), 0.0)
    assert planned_batch(shards, 2, 8) == (pytest.approx(11 / 6), 0.5)


def test_planned_batches_are_fuller() -> None:
    """Oracle: the rule before, on the same sizes as in COCO; padded ones are fuller still, and
    nearly full."""
    shards = shards_of("coco", 500)[:4]
    planned, _ = planned_batch(shards, 8, 1)
    padded, padding = planned_batch(shards, 8, 32)
    assert 1.3 * waiting_batch(shards, 8) < planned < 6 < padded < 8
    assert 0 < padding < 0.05
