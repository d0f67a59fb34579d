"""Tests of sharding.order.order: exactly once an epoch, the same for everybody, from any
position."""

from __future__ import annotations

import doctest
import hashlib
import pickle
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.order import order as order_module
from sharding.order.order import Order, Plan

Shapes = list[list[tuple[int, int]]]
SHARDS = st.lists(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 2)), max_size=9), min_size=1, max_size=9
).filter(any)
SETTINGS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**70),
        "micro_batch_size": st.integers(1, 6),
        "window_num_shards": st.integers(1, 10),
        "shape_step_px": st.integers(1, 6),
    }
)
quick = settings(max_examples=75, deadline=None, derandomize=True)


def _order(shapes: Shapes, **config: int) -> Order:
    """The order of shards given one by one."""
    flat = np.array([shape for shard in shapes for shape in shard], np.uint16)
    return Order(flat, [len(shard) for shard in shapes], **config)


def _group(shapes: Shapes, sample: tuple[int, int], step: int) -> tuple[int, ...]:
    return tuple(-(-side // step) for side in shapes[sample[0]][sample[1]])


def _epoch(order: Order, epoch: int) -> list[tuple[tuple[int, int], ...]]:
    first = epoch * order.num_micro_batches
    return [order[first + place].samples for place in range(order.num_micro_batches)]


@quick
@given(shapes=SHARDS, config=SETTINGS, epoch=st.integers(0, 5))
def test_every_epoch_has_every_sample_exactly_once(
    shapes: Shapes, config: dict[str, int], epoch: int
) -> None:
    """Oracle: the set of all samples; and of each group at most one micro-batch is ragged."""
    order = _order(shapes, **config)
    everything = {(i, j) for i, shard in enumerate(shapes) for j in range(len(shard))}
    batches = _epoch(order, epoch)
    assert Counter(sample for batch in batches for sample in batch) == Counter(everything)
    assert order.num_samples == len(everything)
    ragged: Counter[tuple[int, ...]] = Counter()
    for batch in batches:
        groups = {_group(shapes, sample, config["shape_step_px"]) for sample in batch}
        assert len(groups) == 1 and 1 <= len(batch) <= config["micro_batch_size"]
        ragged[groups.pop()] += len(batch) < config["micro_batch_size"]
    assert max(ragged.values()) <= 1


def _permutation(num: int, seed: int, *purpose: int) -> list[int]:
    words = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=purpose)).random_raw(num)
    return sorted(range(num), key=lambda i: int(words[i]))


def _obvious(shapes: Shapes, epoch: int, config: dict[str, int]) -> Iterator[Any]:
    """An epoch as the module's docstring tells it, with real queues and from its beginning."""
    seed, size = config["seed"], config["micro_batch_size"]
    shards = _permutation(len(shapes), seed, epoch, 0, 0)
    num_windows = -(-len(shapes) // config["window_num_shards"])
    queues: dict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)
    for window in range(num_windows):
        first, stop = (len(shapes) * i // num_windows for i in (window, window + 1))
        samples = [(i, j) for i in shards[first:stop] for j in range(len(shapes[i]))]
        for k in _permutation(len(samples), seed, epoch, 1, window):
            queues[_group(shapes, samples[k], config["shape_step_px"])].append(samples[k])
        leaving = []
        for group in sorted(queues):
            least = 1 if window == num_windows - 1 else size
            while len(queues[group]) >= least:
                leaving.append(tuple(queues[group][:size]))
                del queues[group][:size]
        for k in _permutation(len(leaving), seed, epoch, 2, window):
            yield leaving[k]


@quick
@given(shapes=SHARDS, config=SETTINGS, epoch=st.integers(0, 5))
def test_the_arithmetic_is_that_of_real_queues(
    shapes: Shapes, config: dict[str, int], epoch: int
) -> None:
    """Oracle: a slow, obvious simulation that goes through the epoch from its beginning."""
    assert _epoch(_order(shapes, **config), epoch) == list(_obvious(shapes, epoch, config))


@quick
@given(
    shapes=SHARDS,
    config=SETTINGS,
    worlds=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 5)), min_size=1, max_size=4),
)
def test_worlds_of_any_size_resume_from_any_position(
    shapes: Shapes, config: dict[str, int], worlds: list[tuple[int, int]]
) -> None:
    """Oracle: one reader from position 0. Each world (size, steps) starts afresh where the one
    before it stopped, its ranks asking in an order of their own.
    """
    position, got = 0, {}
    for world_size, num_steps in worlds:
        end = position + world_size * num_steps
        for rank in reversed(range(world_size)):
            order = _order(shapes, **config)
            for mine in range(position + rank, end, world_size):
                assert mine not in got
                got[mine] = order[mine]
        position = end
    single = _order(shapes, **config)
    assert [got[i] for i in range(position)] == [single[i] for i in range(position)]
    assert all(got[i].position == i for i in got)
    assert all(got[i].epoch == i // single.num_micro_batches for i in got)


def test_order_does_not_change_from_release_to_release() -> None:
    """Oracle: numbers written down once; a change would spoil the positions in checkpoints."""
    shapes = [[(8, 8)] * 4, [(8, 8), (9, 9)], [(16, 16)] * 3]
    order = _order(shapes, seed=5, micro_batch_size=2, window_num_shards=2, shape_step_px=8)
    assert [order[position].samples for position in (0, 1, 5, 1_000_003)] == [
        ((2, 0), (2, 1)),
        ((1, 0), (0, 3)),
        ((2, 1), (2, 2)),
        ((2, 2), (1, 1)),
    ]


def _uneven(num_shards: int, most: int, seed: int) -> tuple[np.ndarray, list[int]]:
    """Shapes of 100 to 499 px a side of shards of 0 to `most` samples, and the shards' sizes."""
    random = np.random.PCG64(np.random.SeedSequence(seed)).random_raw
    sizes = (random(num_shards) % (most + 1)).tolist()
    words = np.concatenate([random(2 * size) for size in sizes])
    return (words % 400 + 100).astype(np.uint16).reshape(-1, 2), sizes


@pytest.mark.parametrize(
    "made, seed, size, window, step, expected",
    [
        (
            (37, 60, 1),
            0,
            8,
            4,
            128,
            "f36b47b963c4b646952fb96d8c3409eb248aa45f51728991ca049d157202edc9",
        ),
        (
            (37, 60, 1),
            2**70 + 1,
            32,
            5,
            64,
            "19bdfbd57ececf2480914549ede05265e1d958ff3a746f1e85bab5da0f704d60",
        ),
        (
            (200, 9, 2),
            7,
            3,
            16,
            250,
            "518d0b22030c6ea6d245d916895a60da7ff2c62c1ebdd491ff790926f4032adc",
        ),
        (
            (12, 300, 3),
            7,
            16,
            100,
            1,
            "1cb61456e775e252e1c9b568d2d019da67cd240241f8344d5412642368429f26",
        ),
        (
            (50, 100, 4),
            11,
            1,
            1,
            5000,
            "1b7e11f56e8991457b5ac71068db46b4d22fd3d13b2fdf0c4402b5d1e8dccf29",
        ),
    ],
    ids=["plain", "large seed", "tiny shards", "one window", "batches of one"],
)
def test_the_sequence_is_frozen(
    made: tuple[int, int, int], seed: int, size: int, window: int, step: int, expected: str
) -> None:
    """Oracle: hashes of three epochs and 50 far positions as the first release gave them, whose
    arithmetic was another one (all groups and counts in memory).
    """
    shapes, sizes = _uneven(*made)
    order = Order(
        shapes,
        sizes,
        seed=seed,
        micro_batch_size=size,
        window_num_shards=window,
        shape_step_px=step,
    )
    digest = hashlib.sha256()
    for position in (*range(3 * order.num_micro_batches), *range(10**9, 10**9 + 50)):
        batch = order[position]
        digest.update(repr((batch.position, batch.epoch, batch.samples)).encode())
    assert digest.hexdigest() == expected


@pytest.mark.parametrize("num_samples", [10, 255, 256, 1000])
@pytest.mark.parametrize("micro_batch_size", [256, 70_000, 2**63 - 1])
def test_a_micro_batch_larger_than_the_data_set(num_samples: int, micro_batch_size: int) -> None:
    """Counts of few samples have 8 bits, for which 256 is too large a number. Oracle: all samples,
    each once, in as many micro-batches as they fill."""
    shapes = [[(640, 480)] * (num_samples // 2), [(640, 480)] * -(-num_samples // 2)]
    config = {"micro_batch_size": micro_batch_size, "window_num_shards": 1, "shape_step_px": 64}
    batches = _epoch(_order(shapes, seed=0, **config), 1)
    assert len(batches) == -(-num_samples // micro_batch_size)
    given_out = sorted(sample for batch in batches for sample in batch)
    assert given_out == [(i, j) for i, one in enumerate(shapes) for j in range(len(one))]


def test_epochs_and_seeds_differ_and_windows_mix() -> None:
    """Oracle: 40 shards of 50: epochs share no order, a window's batches mix its 8 shards only."""
    shapes, sizes = np.full((2000, 2), 64), [50] * 40
    config = {"micro_batch_size": 25, "window_num_shards": 8, "shape_step_px": 64}
    order = Order(shapes, sizes, seed=0, **config)
    other = Order(shapes, sizes, seed=1, **config)
    assert order.num_micro_batches == 80
    assert _epoch(order, 0) != _epoch(order, 1) != _epoch(other, 1)
    first_shards = set()
    for epoch in range(5):
        batches = _epoch(order, epoch)
        for window in range(5):
            inside = batches[16 * window : 16 * window + 16]
            assert len({shard for batch in inside for shard, _ in batch}) == 8
            assert all(len({shard for shard, _ in batch}) >= 4 for batch in inside)
        first_shards.add(frozenset(shard for batch in batches[:16] for shard, _ in batch))
    assert len(first_shards) == 5


def test_pictures_of_one_shape_give_one_ragged_micro_batch() -> None:
    """Oracle: 2000 = 62 * 32 + 16."""
    order = Order(
        np.full((2000, 2), 96),
        [250] * 8,
        seed=0,
        micro_batch_size=32,
        window_num_shards=8,
        shape_step_px=32,
    )
    sizes = Counter(len(samples) for samples in _epoch(order, 3))
    assert sizes == {32: 62, 16: 1}


def test_looking_at_little_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the same set looked at all at once; here 40 samples and 3 windows at a time."""
    shapes, sizes = _uneven(60, 30, 5)
    config = {"seed": 3, "micro_batch_size": 4, "window_num_shards": 3, "shape_step_px": 100}
    expected = _epoch(Order(shapes, sizes, **config), 1)
    monkeypatch.setattr(order_module, "_NUM_SAMPLES_AT_ONCE", 40)
    monkeypatch.setattr(order_module, "_NUM_WINDOWS_AT_ONCE", 3)
    assert _epoch(Order(shapes, sizes, **config), 1) == expected


def test_a_memory_map_is_left_where_it_is(tmp_path: Path) -> None:
    """Oracle: the order of the same shapes in memory; the map's pages are shared, not copied."""
    shapes, sizes = _uneven(40, 50, 6)
    np.save(tmp_path / "shapes.npy", shapes)
    mapped = np.load(tmp_path / "shapes.npy", mmap_mode="r")
    config = {"seed": 3, "micro_batch_size": 4, "window_num_shards": 3, "shape_step_px": 100}
    order = Order(mapped, sizes, **config)
    assert np.shares_memory(order._shapes, mapped)
    assert _epoch(order, 2) == _epoch(Order(shapes.astype(np.int64), sizes, **config), 2)


def test_epochs_are_counted() -> None:
    """Oracle: 12 samples in micro-batches of 3 are 4 positions an epoch."""
    order: Plan = Order(
        np.full((12, 2), 8), [12], seed=0, micro_batch_size=3, window_num_shards=1, shape_step_px=8
    )
    assert [order.epochs(position) for position in (0, 2, 4, 9)] == [(0,), (0.5,), (1,), (2.25,)]
    assert order[9].epoch == 2 and order[9].source == 0


def test_a_copy_by_pickle_is_small_and_says_the_same() -> None:
    """Oracle: the original; bytes bounded so that no cache travels to spawned workers."""
    order = Order(
        np.full((20_000, 2), 64, np.uint16),
        [1000] * 20,
        seed=0,
        micro_batch_size=8,
        window_num_shards=20,
        shape_step_px=64,
    )
    expected = [order[position] for position in range(50)]
    data = pickle.dumps(order)
    assert len(data) < 4 * 20_000 + 3_000
    copy = pickle.loads(data)
    assert [copy[position] for position in range(50)] == expected


@pytest.mark.parametrize(
    "name",
    [
        "seed",
        "micro_batch_size",
        "window_num_shards",
        "shape_step_px",
    ],
)
def test_settings_out_of_range_are_refused(name: str) -> None:
    """Oracle: the error names the setting; a set without samples and position -1 are refused."""
    sound = {"seed": 0, "micro_batch_size": 1, "window_num_shards": 1, "shape_step_px": 1}
    with pytest.raises(ValueError, match=f"^{name}: got -1, expected at least"):
        Order([[1, 1]], [1], **{**sound, name: -1})
    with pytest.raises(ValueError, match="no sample in 2 shards"):
        Order([], [0, 0], **sound)
    with pytest.raises(ValueError, match=r"^shapes: got \(1, 2\), expected \(2, 2\)"):
        Order([[1, 1]], [1, 1], **sound)
    with pytest.raises(ValueError, match="^shape_step_px: got 1 for pictures of up to 60000 px"):
        Order([[60000, 10]], [1], **sound)
    with pytest.raises(IndexError):
        Order([[1, 1]], [1], **sound)[-1]


def test_the_worked_example_is_true() -> None:
    """Oracle: the docstring's own numbers."""
    result = doctest.testmod(order_module)
    assert result.attempted == 7 and result.failed == 0
