"""Tests of sharding.order.shuffle_quality and sharding.order.shuffle_simulation: figures that can
be worked out by hand."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from math import comb
from pathlib import Path

import numpy as np
import pytest
import webdataset

from sharding.format.catalog import read_catalog
from sharding.order.mixture import Mixture
from sharding.order.order import Order
from sharding.order.shuffle_quality import lines, measure, quality
from sharding.order.shuffle_simulation import SampleSequence, ShuffleConfig, ShuffleMethod, compare
from sharding.reading.sample_reader import iterate

CONFIG = ShuffleConfig(micro_batch_size=8, num_ranks=2, num_workers=2, buffer_num_samples=50)


def _sequence(samples: list[int], size: int) -> SampleSequence:
    edges = np.arange(0, len(samples) + size, size).clip(max=len(samples))
    return SampleSequence(samples=np.array(samples), edges=edges)


def _order(sizes: list[int], window_num_shards: int, seed: int = 0) -> Order:
    return Order(
        np.full((sum(sizes), 2), 8),
        sizes,
        seed=seed,
        micro_batch_size=8,
        window_num_shards=window_num_shards,
        shape_step_px=8,
    )


def test_nothing_is_mixed() -> None:
    """Oracle: by hand. 2 shards of 16 read as they lie, twice: one shard a micro-batch of 16, both
    in a step of two, nobody moves, neighbours stay one place of 32 apart and meet again.
    """
    sequence = _sequence(list(range(32)), 16)
    got = quality([ShuffleMethod(name="still", first=sequence, second=sequence)], [[16, 16]], 2)[0]
    assert (got.num_shards, got.step_num_shards, got.entropy, got.drift) == (1, 2, 0, 0)
    assert (got.displacement, got.separation, got.retention) == (0, 1 / 32, 1)


def test_shards_take_turns() -> None:
    """Oracle: by hand. Micro-batches of 4 with 3 samples of one shard and 1 of the other; in the
    next epoch all comes the other way round, so sample at place i of 8 moves by |7 - 2 i|.
    """
    samples = [0, 1, 2, 4, 3, 5, 6, 7]
    way = ShuffleMethod(
        name="turns", first=_sequence(samples, 4), second=_sequence(samples[::-1], 4)
    )
    got = quality([way], [[4, 4]], 1)[0]
    assert got.num_shards == 2 and got.displacement == 4 / 8 and got.separation == 1 / 8
    assert got.entropy == pytest.approx(-(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)))


def test_neighbours_part() -> None:
    """Oracle: by hand. In the next epoch the sample of place i comes at 1009 i modulo 10007, so of
    samples within 8 places none are less than 10007 - 8 * 1009 = 1935 apart.
    """
    first = np.arange(10_007)
    second = np.argsort(first * 1009 % 10_007)
    way = ShuffleMethod(
        name="", first=_sequence(first.tolist(), 10), second=_sequence(second.tolist(), 10)
    )
    assert quality([way], [[10_007]], 1)[0].retention == 0


def test_a_set_drifts() -> None:
    """Oracle: by hand. Two sets of 8 samples, first all micro-batches of 2 of the one, then those
    of the other: in the middle each is 2 micro-batches off. By turns: half a micro-batch.
    """
    halves = _sequence(list(range(16)), 2)
    turns = _sequence(np.arange(16).reshape(2, 4, 2).transpose(1, 0, 2).ravel().tolist(), 2)
    methods = [ShuffleMethod(name="", first=one, second=one) for one in (halves, turns)]
    assert [one.drift for one in quality(methods, [[8], [4, 4]], 1)] == [2, 0.5]


def test_a_permutation_is_what_chance_expects() -> None:
    """Oracle: of 40 shards of 50, a micro-batch of 8 meets 40 (1 - C(1950, 8) / C(2000, 8)) on
    average; two random places are 1/3 apart. Ours with all shards in one window is as good.
    """
    sizes = [50] * 40
    ours, _, best = quality(compare(_order(sizes, 40), [sizes], CONFIG), [sizes], 2)
    expected = 40 * (1 - comb(1950, 8) / comb(2000, 8))
    for got in (ours, best):
        assert got.num_shards == pytest.approx(expected, rel=0.02)
        assert got.displacement == pytest.approx(1 / 3, rel=0.1)
        assert got.separation == pytest.approx(1 / 3, rel=0.1)
        assert got.entropy > 0.94 and got.drift == 0


def test_a_window_bounds_the_shards_of_a_micro_batch() -> None:
    """Oracle: 8 shards are mixed at a time; webdataset's buffer of 50 holds hardly more than one or
    two shards of 50 at a time, and its first hundred come before it is full.
    """
    sizes = [50] * 40
    ours, stock, best = quality(compare(_order(sizes, 8), [sizes], CONFIG), [sizes], 2)
    assert 4 < ours.num_shards < 8 < best.step_num_shards
    assert stock.num_shards < 4 and stock.entropy < ours.entropy < best.entropy


def test_every_way_gives_every_sample_once() -> None:
    """Oracle: the set of all samples, of shards of uneven sizes, more workers than some have."""
    sizes = [3, 0, 20, 7, 11]
    methods = compare(_order(sizes, 2), [sizes], replace(CONFIG, num_workers=3))
    for way in methods:
        for sequence in (way.first, way.second):
            assert sorted(sequence.samples) == list(range(41))
            assert np.diff(sequence.edges).max() <= 8 and sequence.edges[-1] == 41
        assert way.first.samples.tolist() != way.second.samples.tolist()


def test_sets_in_exact_ratios_do_not_drift() -> None:
    """Oracle: a turn in each weights[k]-th of a cycle is never a micro-batch off, however long;
    random draws are, and webdataset's RandomMix draws. Its random numbers are not ours to change.
    """
    sizes = [[50] * 8, [50] * 32]
    mixture = Mixture([_order(one, 8, seed) for seed, one in enumerate(sizes)], [2, 3], 0)
    before = random.getstate()
    ours, stock, best = quality(compare(mixture, sizes, CONFIG), sizes, 2)
    assert random.getstate() == before
    assert ours.drift <= 1 < min(stock.drift, best.drift)


def test_webdataset_is_really_webdataset(
    tmp_path: Path, make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: stock WebDataset on real tars, told rank and worker by its own variables, its seeds
    the same; the keys that it gives, in micro-batches that ranks and workers give in turn.
    """
    sizes = [5, 9, 2, 7, 6, 8, 3, 4]
    folder = make_folder(tmp_path, sizes)
    tars = read_catalog(folder).tars(folder, "train")
    number = {
        sample.key: index
        for index, sample in enumerate(sample for tar in tars for sample in iterate(tar))
    }
    config = replace(CONFIG, micro_batch_size=2, buffer_num_samples=6, buffer_num_shards=3, seed=5)
    stock = compare(_order(sizes, 2), [sizes], config)[1]
    streams = []
    for worker in range(2):
        for rank in range(2):
            for name, value in (
                ("RANK", rank),
                ("WORLD_SIZE", 2),
                ("WORKER", worker),
                ("NUM_WORKERS", 2),
            ):
                monkeypatch.setenv(name, str(value))
            data = webdataset.WebDataset(
                [str(tar) for tar in tars],
                shardshuffle=3,
                detshuffle=True,
                seed=5,
                nodesplitter=webdataset.split_by_node,
            ).shuffle(6, seed=f"5 0 0 {rank} {worker}")
            streams.append([number[sample["__key__"]] for sample in data])
    expected = []
    for step in range(0, max(map(len, streams)), 2):
        for stream in streams:
            expected += stream[step : step + 2]
    assert stock.first.samples.tolist() == expected


def test_a_folder_is_measured_and_drawn(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    """Oracle: three methods, a line each under the heading; a PNG's first bytes; the same figures
    from a catalog without shapes beside it; only the first shards of a set that is too large.
    """
    folder = make_folder(tmp_path, [5, 9, 2, 7])
    config = replace(CONFIG, micro_batch_size=2)
    found = measure(folder, config, picture=tmp_path / "shuffle.png")
    assert [one.name for one in found] == ["ours", "webdataset", "permutation"]
    assert [line.split()[0] for line in lines(found)[2:]] == [one.name for one in found]
    assert (tmp_path / "shuffle.png").read_bytes().startswith(b"\x89PNG")
    assert measure(folder, replace(config, most_num_samples=6))[0].step_num_shards == 1
    raw = json.loads((folder / "catalog.json").read_bytes())
    del raw["shapes_sha256"]
    (folder / "catalog.json").write_text(json.dumps(raw))
    assert measure(folder, config) == found


@pytest.mark.parametrize(
    "name",
    [
        "buffer_num_samples",
        "buffer_num_shards",
        "num_ranks",
        "num_workers",
        "most_num_samples",
    ],
)
def test_settings_out_of_range_are_refused(name: str) -> None:
    """Oracle: the error names the setting."""
    with pytest.raises(ValueError, match=f"^{name}: got 0, expected at least 1"):
        ShuffleConfig(**{name: 0})  # type: ignore[arg-type]  # one of its ints
