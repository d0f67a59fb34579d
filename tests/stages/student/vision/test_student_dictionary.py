"""The visual dictionary: nearest codes, moving averages, its start, codes that return."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from soho_golden import released_neck

from stages.student.vision.neck_config import DictionaryConfig
from stages.student.vision.visual_dictionary import DEAD_AFTER, Dictionary, kmeans_plus_plus

RELEASED = released_neck(num_codes=16).dictionary
OURS = DictionaryConfig(num_codes=16, revive_after_steps=3, decay=0.9)
WIDTH = 6


def _cells(num: int, seed: int = 0) -> torch.Tensor:
    """Cells around 5 centres."""
    random = torch.Generator().manual_seed(seed)
    centres = 4 * torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(99))
    rows = torch.randint(5, (num,), generator=random)
    return centres[rows] + 0.3 * torch.randn(num, WIDTH, generator=random)


def _ones(cells: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(cells))


def _dictionary(config: DictionaryConfig) -> Dictionary:
    torch.manual_seed(1)
    return Dictionary(config, WIDTH)


def _started(config: DictionaryConfig = OURS) -> Dictionary:
    dictionary = _dictionary(config)
    cells = _cells(200)
    dictionary(cells, _ones(cells))
    dictionary.learn()
    return dictionary


def test_the_nearest_code_and_its_value() -> None:
    """Oracle: a loop over codes; of equal ones the first; the gradient passes straight through."""
    dictionary = _started()
    dictionary.codes[9] = dictionary.codes[4]
    cells = _cells(50, seed=3).requires_grad_()
    index, value = dictionary(cells)
    for row, got in zip(cells.detach(), index.tolist()):
        distances = [float((row - code).square().sum()) for code in dictionary.codes]
        assert distances[got] == pytest.approx(min(distances), abs=1e-4)
    assert 9 not in index.tolist()
    torch.testing.assert_close(value, dictionary.codes[index], rtol=1e-5, atol=1e-5)
    weights = torch.randn(50, WIDTH)
    (value * weights).sum().backward()
    assert cells.grad is not None and torch.equal(cells.grad, weights)


def _released_step(
    state: dict[str, torch.Tensor], cells: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The released update with its dense one-hot matrix, written out again."""
    distances = (cells[:, None] - state["embed"][None]).square().sum(-1)
    one_hot = torch.nn.functional.one_hot(distances.argmin(1), len(state["embed"])).float()
    state["size"] = 0.4 * state["size"] + 0.6 * one_hot.sum(0)
    state["average"] = 0.4 * state["average"] + 0.6 * (one_hot.T @ cells)
    total = state["size"].sum()
    smoothed = (state["size"] + 1e-5) / (total + len(state["embed"]) * 1e-5) * total
    state["embed"] = state["average"] / smoothed[:, None]
    return distances.argmin(1), state["embed"][distances.argmin(1)]


def test_the_released_way_is_that_of_its_formulas() -> None:
    """Oracle: the same with a one-hot matrix, over 6 forward passes: index of the old codebook,
    value of the new one."""
    dictionary = _dictionary(RELEASED)
    state = {
        "embed": dictionary.codes.clone(),
        "size": torch.zeros(16),
        "average": torch.zeros(16, WIDTH),
    }
    old_and_new_differ = 0
    for seed in range(6):
        cells = _cells(40, seed)
        index, value = dictionary(cells, _ones(cells))
        wanted, wanted_value = _released_step(state, cells)
        assert torch.equal(index, wanted)
        torch.testing.assert_close(value, wanted_value, rtol=1e-4, atol=1e-5)
        old_and_new_differ += int((dictionary(cells)[0] != index).sum())
        torch.testing.assert_close(dictionary.codes, state["embed"], rtol=1e-4, atol=1e-6)
    assert old_and_new_differ > 0


def test_the_released_way_collapses_and_ours_does_not() -> None:
    """Oracle: what the released code does. After its first pass every code without a cell is zero,
    and stays unused; ours starts on cells, all of them in use."""
    released = _dictionary(replace(RELEASED, num_codes=64))
    cells = _cells(400)
    first, _ = released(cells, _ones(cells))
    num_hit = len(first.unique())
    assert int((released.codes == 0).all(dim=1).sum()) == 64 - num_hit > 40
    for seed in range(60):
        cells = _cells(400, seed)
        released(cells, _ones(cells))
    assert int(released.num_dead()) > 30
    ours = _dictionary(replace(OURS, num_codes=64))
    for seed in range(60):
        cells = _cells(400, seed)
        ours(cells, _ones(cells))
        ours.learn()
    assert int(ours.num_dead()) < 8 and float(ours.perplexity()) > 32


def test_the_start_takes_cells_far_apart() -> None:
    """Oracle: before it index -1 and the cells themselves; then every code is a cell, no two are
    alike, and all 5 heaps of cells have some."""
    dictionary, cells = _dictionary(OURS), _cells(200)
    index, value = dictionary(cells, _ones(cells))
    assert (index == -1).all() and torch.equal(value, cells) and not dictionary.started
    assert float(dictionary.perplexity()) == 0
    dictionary.learn()
    assert bool(dictionary.started)
    same = (dictionary.codes[:, None] == cells[None]).all(dim=-1).sum(dim=1)
    assert (same >= 1).all() and len(dictionary.codes.unique(dim=0)) == 16
    heaps = torch.cdist(cells, dictionary.codes).amin(dim=1)
    assert heaps.max() < 3


def test_far_rows_are_chosen() -> None:
    """Oracle: 4 heaps, far apart, and 4 codes: one of each. Fewer unlike rows than codes: all of
    them, some again; never an endless or a broken draw."""
    centres = torch.tensor([[0.0, 0], [100, 0], [0, 100], [100, 100]])
    heaps = centres.repeat(25, 1) + torch.rand(100, 2, generator=torch.Generator().manual_seed(0))
    chosen = kmeans_plus_plus(heaps, 4)
    assert len((chosen / 100).round().unique(dim=0)) == 4
    assert torch.equal(kmeans_plus_plus(heaps, 4), chosen)
    few = kmeans_plus_plus(centres.repeat(3, 1), 9)
    assert len(few) == 9 and len(few.unique(dim=0)) == 4
    assert kmeans_plus_plus(torch.zeros(3, 2), 5).shape == (5, 2)


def test_a_step_by_hand() -> None:
    """Oracle: on paper. Codes 0 and 10 with a count of 1 each; a step of two micro-batches brings
    cells 1 and 2 (one twice as heavy) and 20; decay 1/2. Counts 1/2 + 3/2 and 1/2 + 1/2; sums
    (0 + 4) / 2 and (10 + 20) / 2. The value seen in the step is of the codebook before it."""
    dictionary = Dictionary(DictionaryConfig(num_codes=2, decay=0.5), 1)
    dictionary._replace(torch.tensor([0, 1]), torch.tensor([[0.0], [10.0]]))
    dictionary.started.fill_(True)
    _, value = dictionary(torch.tensor([[1.0], [2.0]]), torch.tensor([2.0, 1.0]))
    assert value.flatten().tolist() == [0.0, 0.0]
    dictionary(torch.tensor([[20.0], [7.0]]), torch.tensor([1.0, 0.0]))
    dictionary.learn()
    assert dictionary.counts.tolist() == [2.0, 1.0] and dictionary.num_seen.tolist() == [3.0, 1.0]
    assert dictionary.codes.flatten().tolist() == [1.0, 15.0]
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert float(dictionary.perplexity()) == pytest.approx(math.exp(entropy))
    dictionary.learn()
    assert dictionary.counts.tolist() == [2.0, 1.0]


def test_what_does_not_count_teaches_nothing() -> None:
    """Oracle: the dictionary's state, bit for bit: without weights, and with zeros, in both ways;
    before a start too."""
    for config in (RELEASED, OURS):
        for begun in (True, False):
            dictionary = _started(config) if begun else _dictionary(config)
            before = {name: value.clone() for name, value in dictionary.state_dict().items()}
            cells = _cells(30, seed=5)
            dictionary(cells)
            dictionary(cells, torch.zeros(30))
            dictionary.learn()
            for name, value in dictionary.state_dict().items():
                assert torch.equal(value, before[name]), (config.update, begun, name)


def test_unused_codes_return_as_cells() -> None:
    """Oracle: a code that no cell takes for 3 updates becomes a cell of the last step; with
    0 it stays unused for ever."""
    for after, returns in ((3, True), (0, False)):
        dictionary = _started(replace(OURS, revive_after_steps=after))
        dictionary.codes[7], dictionary.sums[7] = 1e3, 1e3
        far = _cells(60, seed=8)
        far[:6] += 50
        for _ in range(3):
            assert dictionary.codes[7, 0] == pytest.approx(1e3)
            dictionary(far, _ones(far))
            dictionary.learn()
        if returns:
            assert (dictionary.codes[7] == far).all(dim=1).any() and dictionary.age[7] == 0
        else:
            assert dictionary.codes[7, 0] == pytest.approx(1e3) and dictionary.age[7] == 3


def test_dead_codes_are_counted() -> None:
    """Oracle: codes that never had a cell, from the first update on; codes that lost theirs, after
    `DEAD_AFTER` updates."""
    dictionary = _dictionary(RELEASED)
    cells = _cells(100)
    index, _ = dictionary(cells, _ones(cells))
    assert int(dictionary.num_dead()) == 16 - len(index.unique())
    one = cells[:1]
    for _ in range(DEAD_AFTER):
        dictionary(one, _ones(one))
    assert int(dictionary.num_dead()) >= 14


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_stays_in_full_precision(dtype: torch.dtype) -> None:
    """Oracle: dtypes and bits, after the casts that engines do; cells of half precision are told
    as their float32 selves are."""
    dictionary = _started()
    before = {name: value.clone() for name, value in dictionary.state_dict().items()}
    module = torch.nn.Sequential(dictionary, torch.nn.Linear(2, 2))
    module.to(dtype)
    assert module[1].weight.dtype == dtype
    for name, value in dictionary.state_dict().items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name])
    cells = _cells(40, seed=2).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        index, value = dictionary(cells, _ones(cells))
    assert value.dtype == torch.float32
    assert torch.equal(index, dictionary(cells.float())[0])
    dictionary.learn()
    assert dictionary.codes.dtype == torch.float32
    assert not torch.equal(dictionary.codes, before["codes"])
    dictionary.codes = dictionary.codes.to(dtype)
    with pytest.raises(ValueError, match="buffer_dtype: got torch"):
        dictionary(cells)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"num_codes": 1}, "num_codes: got 1"),
        ({"decay": 1.0}, "decay: got 1.0"),
        ({"smoothing": -1.0}, "smoothing: got -1.0"),
        ({"revive_after_steps": -1}, "revive_after_steps: got -1"),
        ({"update": "forward"}, "update: got forward with start data"),
    ],
)
def test_settings_that_cannot_be(fields: dict, words: str) -> None:
    """Oracle: ValueError naming the field."""
    with pytest.raises(ValueError, match=words):
        DictionaryConfig(**fields)
