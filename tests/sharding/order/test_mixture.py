"""Tests of sharding.order.mixture: exact ratios, each set's own epochs, any position at once."""

from __future__ import annotations

import doctest
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.order import mixture as mixture_module
from sharding.order.mixture import Mixture
from sharding.order.order import Order

WEIGHTS = st.lists(st.integers(1, 7), min_size=1, max_size=4)
quick = settings(max_examples=40, deadline=None, derandomize=True)


def _orders(sizes: list[int]) -> list[Order]:
    """Sets of so many samples, in micro-batches of 2 and shards of at most 3."""
    orders = []
    for seed, size in enumerate(sizes):
        shards = [3] * (size // 3) + [size % 3]
        orders.append(
            Order(
                np.full((size, 2), 8),
                shards,
                seed=seed,
                micro_batch_size=2,
                window_num_shards=2,
                shape_step_px=8,
            )
        )
    return orders


@quick
@given(weights=WEIGHTS, seed=st.integers(0, 2**70), cycle=st.integers(0, 10**12))
def test_every_cycle_has_the_exact_ratio_evenly_spread(
    weights: list[int], seed: int, cycle: int
) -> None:
    """Oracle: the weights; and set k, with one turn in each weights[k]-th of the cycle, has had at
    any moment t within one turn of t * weights[k], so at any two places all sets agree on t.
    """
    mixture = Mixture(_orders([5] * len(weights)), weights, seed)
    length = mixture.num_micro_batches
    assert length == sum(weights)
    first = cycle * length
    sources = [mixture[position].source for position in range(first, first + length)]
    assert Counter(sources) == {k: weight for k, weight in enumerate(weights)}
    for place in range(length + 1):
        had = Counter(sources[:place])
        earliest = max((had[k] - 1) / weight for k, weight in enumerate(weights))
        latest = min((had[k] + 1) / weight for k, weight in enumerate(weights))
        assert earliest <= latest


@quick
@given(
    weights=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    sizes=st.lists(st.integers(1, 13), min_size=3, max_size=3),
    seed=st.integers(0, 99),
)
def test_each_set_goes_through_its_own_epochs(
    weights: list[int], sizes: list[int], seed: int
) -> None:
    """Oracle: the sets' own orders, gone through one micro-batch after the other; in each epoch of
    a set that has ended each of its samples came once.
    """
    orders = _orders(sizes)
    mixture = Mixture(orders, weights, seed)
    seen = [Counter[tuple[int, int, int]]() for _ in orders]
    turns = [0, 0, 0]
    for position in range(150):
        assert mixture.epochs(position) == tuple(
            turn / order.num_micro_batches for turn, order in zip(turns, orders)
        )
        batch = mixture[position]
        k = batch.source
        own = orders[k][turns[k]]
        assert (batch.position, batch.epoch, batch.samples) == (position, own.epoch, own.samples)
        seen[k].update((batch.epoch, *sample) for sample in batch.samples)
        turns[k] += 1
    for k, order in enumerate(orders):
        ended = turns[k] // order.num_micro_batches
        once = [sample for sample in seen[k] if sample[0] < ended]
        assert len(once) == ended * sizes[k]
        assert max(seen[k].values()) == 1


def test_any_position_at_once_and_the_same_for_everybody() -> None:
    """Oracle: one reader from position 0; a fresh copy and a pickled one jump about."""
    mixture = Mixture(_orders([11, 29, 4]), [5, 3, 1], 7)
    expected = [mixture[position] for position in range(120)]
    fresh = Mixture(_orders([11, 29, 4]), [5, 3, 1], 7)
    copy = pickle.loads(pickle.dumps(mixture))
    for position in np.random.default_rng(0).permutation(120).tolist():
        assert fresh[position] == copy[position] == expected[position]


def test_cycles_and_seeds_differ() -> None:
    """Oracle: of 20 cycles of 2 x 30 positions, hardly two are alike; so with two seeds."""

    def cycles(seed: int) -> list[tuple[int, ...]]:
        mixture = Mixture(_orders([5, 5]), [30, 30], seed)
        return [
            tuple(mixture[60 * cycle + place].source for place in range(60)) for cycle in range(20)
        ]

    assert len(set(cycles(0) + cycles(1))) == 40


def test_mixtures_do_not_change_from_release_to_release() -> None:
    """Oracle: numbers written down once; a change would spoil the positions in checkpoints."""
    mixture = Mixture(_orders([5, 5, 5]), [4, 2, 1], 3)
    sources = "".join(
        str(mixture[7 * cycle + place].source) for cycle in (0, 1, 10**9) for place in range(7)
    )
    assert sources == "102010002100102100010"


@pytest.mark.parametrize(
    "weights, seed, message",
    [
        ([1], 0, "weights"),
        ([1, 0], 0, "weights"),
        ([], 0, "weights"),
        ([1, 1], -1, "seed"),
        ([100_000_000, 1], 0, "weights"),
    ],
)
def test_odd_weights_are_refused(weights: list[int], seed: int, message: str) -> None:
    """Oracle: the error names the setting; position -1 is refused."""
    with pytest.raises(ValueError, match=f"^{message}: got"):
        Mixture(_orders([4, 4]), weights, seed)
    with pytest.raises(IndexError):
        Mixture(_orders([4, 4]), [1, 1], 0)[-1]


def test_the_worked_example_is_true() -> None:
    """Oracle: the docstring's own numbers."""
    result = doctest.testmod(mixture_module)
    assert result.attempted == 8 and result.failed == 0
