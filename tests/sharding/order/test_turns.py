"""Tests of sharding.order.turns: any world size with any step size, nobody ever waits."""

from __future__ import annotations

import doctest
import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.order import turns as turns_module
from sharding.order.order import Order
from sharding.order.turns import Turn, turns

quick = settings(max_examples=100, deadline=None, derandomize=True)


@quick
@given(
    start=st.integers(0, 50),
    world_size=st.integers(1, 9),
    step_size=st.integers(1, 20),
    num=st.integers(0, 60),
)
def test_every_position_is_real_once_and_ranks_have_equally_many_turns(
    start: int, world_size: int, step_size: int, num: int
) -> None:
    """Oracle: the positions from start to end, cut into steps of step_size; in each step every rank
    has ceil(step_size / world_size) turns, all at positions of that step.
    """
    per_rank = [
        list(turns(start, rank, world_size, step_size=step_size, end=start + num))
        for rank in range(world_size)
    ]
    num_steps, turns_a_step = -(-num // step_size), -(-step_size // world_size)
    assert {len(mine) for mine in per_rank} == {num_steps * turns_a_step}
    for step in range(num_steps):
        first = start + step * step_size
        positions = range(first, min(first + step_size, start + num))
        mine = [rank[step * turns_a_step : (step + 1) * turns_a_step] for rank in per_rank]
        in_time = [turn for at_once in zip(*mine) for turn in at_once]
        assert [turn.position for turn in in_time if not turn.is_padding] == list(positions)
        assert all(turn.position in positions for turn in in_time)


def test_without_an_end_it_never_ends() -> None:
    """Oracle: with two ranks and steps of 3, rank 1 has the middle one and, in vain, the first."""
    mine = itertools.islice(turns(9, 1, 2, step_size=3), 4)
    assert list(mine) == [Turn(10, False), Turn(9, True), Turn(13, False), Turn(12, True)]


def test_a_world_larger_than_a_step_is_masked() -> None:
    """Oracle: five ranks, steps of 2: one turn each, three of them for nothing."""
    all_turns = [list(turns(0, rank, 5, step_size=2, end=2)) for rank in range(5)]
    assert [len(mine) for mine in all_turns] == [1] * 5
    assert [mine[0] for mine in all_turns] == [
        Turn(0, False),
        Turn(1, False),
        Turn(0, True),
        Turn(1, True),
        Turn(0, True),
    ]


def test_as_many_as_before_where_ranks_divide_the_step() -> None:
    """Oracle: start + rank, start + rank + world_size, ...: what checkpoints were made with."""
    mine = itertools.islice(turns(7, 1, 4, step_size=8), 5)
    assert list(mine) == [Turn(position, False) for position in (8, 12, 16, 20, 24)]


@pytest.mark.parametrize(
    "start, rank, world_size, step_size",
    [
        (-1, 0, 1, 1),
        (0, -1, 1, 1),
        (0, 1, 1, 1),
        (0, 0, 0, 1),
        (0, 0, 1, 0),
    ],
)
def test_odd_settings_are_refused_at_once(
    start: int, rank: int, world_size: int, step_size: int
) -> None:
    """Oracle: the error comes with the call, not with the first turn."""
    with pytest.raises(ValueError, match="^start, rank, world_size, step_size: got"):
        turns(start, rank, world_size, step_size=step_size)


class _Loader:
    """What a DataLoader does with turns: workers take every W-th and run ahead, the rank gets them
    back in their order.
    """

    def __init__(self, order: Order, mine: list[Turn], num_workers: int) -> None:
        self._workers = [
            iter([(turn, order[turn.position]) for turn in mine[i::num_workers]])
            for i in range(num_workers)
        ]
        self._next = itertools.cycle(range(num_workers))

    def __iter__(self) -> "_Loader":
        return self

    def __next__(self) -> tuple[Turn, tuple[tuple[int, int], ...]]:
        turn, batch = next(self._workers[next(self._next)])
        assert batch.position == turn.position
        return turn, batch.samples


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    data=st.data(),
    shard_sizes=st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(any),
    step_size=st.integers(1, 12),
    micro_batch_size=st.integers(1, 4),
)
def test_worlds_come_and_go_with_their_workers(
    data: st.DataObject, shard_sizes: list[int], step_size: int, micro_batch_size: int
) -> None:
    """Oracle: every sample of two epochs exactly once. Worlds of any size with any number of
    workers follow each other; each is killed within a step, of which some ranks have had more than
    others, and the next one starts at the position of the last whole step; the last runs to the
    end.
    """
    num_samples = sum(shard_sizes)
    shapes = np.full((num_samples, 2), 8)
    shapes[::3] = 16

    def make() -> Order:
        return Order(
            shapes,
            shard_sizes,
            seed=1,
            micro_batch_size=micro_batch_size,
            window_num_shards=2,
            shape_step_px=8,
        )

    end = 2 * make().num_micro_batches
    position, seen = 0, Counter[tuple[int, int, int]]()
    num_worlds = data.draw(st.integers(1, 6), "num_worlds")
    for world in range(num_worlds):
        world_size = data.draw(st.integers(1, 7), "world_size")
        num_steps = data.draw(st.integers(0, 4), "num_steps")
        if world == num_worlds - 1:
            num_steps = -(-(end - position) // step_size)
        turns_a_step = -(-step_size // world_size)
        order = make()
        for rank in range(world_size):
            some = data.draw(st.integers(0, turns_a_step), "turns of a step that comes to nothing")
            wanted = num_steps * turns_a_step
            mine = list(
                itertools.islice(
                    turns(position, rank, world_size, step_size=step_size, end=end), wanted + some
                )
            )
            loader = _Loader(order, mine, data.draw(st.integers(1, 4), "num_workers"))
            for turn, samples in itertools.islice(loader, wanted):
                epoch = turn.position * 2 // end
                seen.update((epoch, *sample) for sample in samples if not turn.is_padding)
        position = min(end, position + num_steps * step_size)
    assert set(seen.values()) == {1} and len(seen) == 2 * num_samples


def test_the_worked_example_is_true() -> None:
    """Oracle: the docstring's own numbers."""
    result = doctest.testmod(turns_module)
    assert result.attempted == 1 and result.failed == 0
