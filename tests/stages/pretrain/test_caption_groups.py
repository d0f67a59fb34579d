"""Pictures visited by groups of their captions (pretrain.visits)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pretrain_fixtures import random_batch, toy_collate, toy_samples, toy_tokenizer, write_objects

from sharding.format.resize import Resize
from sharding.format.schema import Sample
from sharding.order.turns import Turn
from sharding.reading.dataset_source import DatasetSource, open_source
from stages.pretrain.config import PretrainConfig
from stages.pretrain.data.batch_source import Batches, open_stream
from stages.pretrain.data.caption_groups import caption_group, count_captions, num_visits
from stages.pretrain.objectives.config import ItmConfig
from stages.pretrain.objectives.itm import Itm
from stages.training.engine import join_ranks


def test_groups_are_those_of_the_released_code() -> None:
    """Oracle: SOHO's `_process_train_data` by hand: captions in order by fours, and the last group
    filled up from the picture's own, each once where they suffice, else with repetition."""
    random = np.random.default_rng(0)
    for captions in range(1, 14):
        (visits,) = num_visits(np.array([captions]), 4)
        rows = [row for visit in range(visits) for row in caption_group(captions, visit, 4, random)]
        assert set(rows) == set(range(captions)) and len(rows) == 4 * visits
    assert num_visits(np.array([0, 1, 4, 5, 8, 9]), 4).tolist() == [1, 1, 1, 2, 2, 3]
    assert caption_group(9, 0, 4, random) == [0, 1, 2, 3]
    assert caption_group(9, 1, 4, random) == [4, 5, 6, 7]
    last = caption_group(9, 2, 4, random)
    assert last[0] == 8 and len(set(last[1:])) == 3 and set(last) <= set(range(9))
    assert caption_group(1, 0, 4, random) == [0, 0, 0, 0]
    assert len(set(caption_group(2, 0, 4, random)[2:])) == 2


def _with_captions(sample: Sample, number: int) -> Sample:
    info = dict(sample.info)
    info["captions"] = [f"{sample.key} {row}" for row in range(number)]
    info["phrases"] = [[] for _ in range(number)]
    info.pop("truth")
    return replace(sample, info=info)


@pytest.mark.parametrize("visits", ["caption_groups", "picture"])
def test_an_epoch_reads_every_caption_once(visits: str, tmp_path: Path) -> None:
    """Pictures of 1, 2, 3, 5 and 12 captions, groups of 2. Oracle: by `caption_groups` pictures
    come 1, 1, 2, 3 and 6 times; by `picture` each comes once, with 2 captions at most."""
    numbers = [1, 2, 3, 5, 12]
    samples = [_with_captions(s, n) for s, n in zip(toy_samples(5, 0), numbers, strict=True)]
    source = DatasetSource(folder=write_objects(tmp_path / "objects", samples))
    config = PretrainConfig(visits=visits, captions_per_picture=2, micro_batch_size=3)  # type: ignore[arg-type]
    join_ranks()
    groups = visits == "caption_groups"
    opened = [open_source(source, cache=None)]
    counted = [count_captions(opened, tmp_path / "out")[0] for _ in range(2)]  # once from its file
    assert counted[0].tolist() == counted[1].tolist() == numbers
    stream = open_stream(
        [source],
        config,
        seed=1,
        resize=Resize(shorter_px=32, longer_px=64),
        shape_step_px=16,
        num_visits=[num_visits(counted[0], 2)] if groups else None,
    )
    collate = toy_collate(seed=1, captions_per_picture=2, visits_caption_groups=groups)
    batches = Batches(stream, collate)
    pictures: Counter[str] = Counter()
    texts: Counter[tuple[int, ...]] = Counter()
    for position in range(stream.num_micro_batches):
        batch = batches[Turn(position=position, is_padding=False)].batch
        pictures.update(batch.keys)
        own = zip(batch.picture.tolist(), batch.texts.tolist(), strict=True)
        texts.update((picture, *text) for picture, text in own)
        assert batch.first_row.tolist() == [batch.keys.index(key) for key in batch.keys]
    wanted = [1, 1, 2, 3, 6] if groups else [1] * 5
    assert sorted(pictures.values()) == wanted
    assert texts.total() == (26 if groups else 9)


def test_a_picture_that_comes_twice_is_no_negative_of_itself() -> None:
    """Oracle: where all rows of a batch are of one picture, no caption can be mismatched; of two
    pictures in four rows, those of the other one are."""
    batch = random_batch(0, pictures=4, captions=1)
    batch.is_true[:] = batch.matched[:] = True
    batch.tokens = batch.tokens[:1] * 0 + batch.first_row[:, None]
    for first_rows in ([0, 0, 0, 0], [0, 1, 0, 1]):
        changed = replace(batch, first_row=batch.first_row.new_tensor(first_rows))
        Itm(ItmConfig(mismatch=1.0)).mask(changed, toy_tokenizer(), np.random.default_rng(0))
        of_rows = [first_rows[row] for row in changed.tokens[:, 0].tolist()]
        if len(set(first_rows)) == 1:
            assert changed.matched.all()
        else:
            assert not changed.matched.any()
            assert all(own != first for own, first in zip(of_rows, first_rows, strict=True))
