"""Tests of sharding.format.resize and of an order that groups by it."""

from __future__ import annotations

import numpy as np
import pytest

from sharding.format.resize import Resize
from sharding.order.order import Order


def test_many_sizes_are_those_of_one_at_a_time() -> None:
    """Oracle: `size` of each, over all sides up to 120 px, halves included."""
    resize = Resize(shorter_px=33, longer_px=55)
    sides = np.stack(np.meshgrid(np.arange(1, 121), np.arange(1, 121)), axis=-1).reshape(-1, 2)
    wanted = [resize.size(width, height) for width, height in sides.tolist()]
    assert resize.sizes(sides).tolist() == [list(size) for size in wanted]


def test_sides_below_one_are_refused() -> None:
    """Oracle: the message."""
    with pytest.raises(ValueError, match="shorter_px, longer_px: got 0, 5, expected at least 1"):
        Resize(shorter_px=0, longer_px=5)


def test_pictures_that_are_alike_after_resizing_share_micro_batches() -> None:
    """Web pictures: each of its own size, of three proportions. Oracle: all batches are full, and
    the sides of a batch's pictures, resized, round up to the same steps."""
    random = np.random.default_rng(0)
    width = random.integers(200, 3000, 600)
    ratio = np.repeat([1.0, 1.5, 0.5], 200)
    shapes = np.stack([width, (width * ratio).astype(int)], axis=1)
    resize = Resize(shorter_px=96, longer_px=160)
    settings = {"seed": 1, "micro_batch_size": 20, "window_num_shards": 6, "shape_step_px": 32}
    order = Order(shapes, [100] * 6, **settings, resize=resize)
    batches = [
        np.array([100 * shard + sample for shard, sample in order[position].samples])
        for position in range(order.num_micro_batches)
    ]
    assert sorted(np.concatenate(batches).tolist()) == list(range(600))
    for batch in batches:
        steps = -(-resize.sizes(shapes[batch]) // 32)
        assert (steps == steps[0]).all()
    assert sum(len(batch) == 20 for batch in batches) >= 28
    assert Order(shapes, [100] * 6, **settings).num_micro_batches > 200
