"""Tests of sharding.order.visits: samples that come several times an epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sharding.format.schema import ShardError
from sharding.order.visits import VisitOrder
from sharding.reading.dataset_source import DatasetSource
from sharding.reading.stream import ShardStream

SETTINGS = {"seed": 3, "micro_batch_size": 3, "window_num_shards": 2, "shape_step_px": 16}
SIZES = [3, 0, 2, 1]
VISITS = [1, 4, 2, 1, 3, 2]


def test_each_visit_of_each_sample_comes_once_an_epoch() -> None:
    """Oracle: the visits of each sample, listed by hand from VISITS, for two epochs."""
    order = VisitOrder([(64, 48)] * 6, SIZES, VISITS, **SETTINGS)
    assert order.num_micro_batches == 5  # 13 visits by 3
    wanted = Counter(
        (shard, sample, visit)
        for (shard, sample), visits in zip(
            [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1), (3, 0)], VISITS, strict=True
        )
        for visit in range(visits)
    )
    for epoch in range(2):
        batches = [order[position] for position in range(5 * epoch, 5 * epoch + 5)]
        seen = [(*s, v) for one in batches for s, v in zip(one.samples, one.visits, strict=True)]
        assert Counter(seen) == wanted
        assert {one.epoch for one in batches} == {epoch}


def test_what_is_no_number_of_visits_is_refused() -> None:
    """Oracle: at least once each."""
    for visits in ([1, 1], [1, 0, 1, 1, 1, 1]):
        with pytest.raises(ValueError, match="num_visits: got"):
            VisitOrder([(64, 48)] * 6, SIZES, visits, **SETTINGS)


def test_a_stream_gives_a_sample_as_often_as_it_is_visited(
    tmp_path: Path, make_folder: Callable[..., Path]
) -> None:
    """Oracle: keys counted over an epoch; and a position of the order without visits is refused."""
    folder = make_folder(tmp_path, SIZES)
    stream = ShardStream([DatasetSource(folder)], num_visits=[np.array(VISITS)], **SETTINGS)
    keys = [s.key for place in range(stream.num_micro_batches) for s in stream[place]]
    assert Counter(keys) == {f"picture-{n:05d}": times for n, times in enumerate(VISITS)}
    with pytest.raises(ShardError, match="visits are others"):
        ShardStream([DatasetSource(folder)], **SETTINGS).position(stream.state(1))
