"""Weighted sources have orders of their own, and an outage of a store is no bad sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sharding.format.catalog import write_catalog
from sharding.format.schema import Sample
from sharding.reading.dataset_source import DatasetSource
from sharding.reading.local_store import LocalStore
from sharding.reading.store import SampleRequest, StoreOutage
from sharding.reading.stream import ShardStream
from sharding.tools.verify import Fault
from sharding.writing.shard_writer import write_shard

SETTINGS: dict[str, Any] = {
    "seed": 5,
    "micro_batch_size": 2,
    "window_num_shards": 2,
    "shape_step_px": 8,
}


def _source(folder: Path, name: str, weight: int | None) -> DatasetSource:
    """Twelve samples of one size in two shards."""
    info = {"captions": ["x"], "width": 8, "height": 8}
    for shard in range(2):
        samples = [
            Sample(key=f"{name}-{shard}-{n}", image=b"jpeg", extension="jpg", info=info)
            for n in range(6)
        ]
        write_shard(folder / name / f"s-{shard}.tar", samples, fingerprint={"t": "1"})
    splits = {f"s-{shard}.tar": "train" for shard in range(2)}
    write_catalog(folder / name, kind="images", splits=splits, metadata={})
    return DatasetSource(folder / name, weight=weight)


def test_weighted_sources_of_equal_size_are_not_in_step(tmp_path: Path) -> None:
    """Oracle: two equal sets whose turns take the same places in each epoch are in step; and the
    first is read as it would be alone, where its order was before."""
    sources = [_source(tmp_path, name, 1) for name in ("a", "b")]
    stream = ShardStream(sources, **SETTINGS)
    orders: list[list[list[str]]] = [[], []]
    for position in range(24):
        orders[stream.plan[position].source].append(
            [sample.key.partition("-")[2] for sample in stream[position]]
        )
    assert orders[0] != orders[1]
    alone = ShardStream([DatasetSource(tmp_path / "a")], **SETTINGS)
    keys = [[s.key.partition("-")[2] for s in alone[position]] for position in range(12)]
    assert orders[0] == keys


@pytest.mark.parametrize("waits", [True, False])
def test_an_outage_is_waited_for_and_no_bad_sample(
    tmp_path: Path, waits: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: a store that is out for three answers: whoever waits gets every sample and a warning
    each time; whoever does not, faults."""
    plain, outages = LocalStore.read_samples, iter(range(3))

    def out(self: LocalStore, wanted: Sequence[SampleRequest]) -> Iterator[Any]:
        for answer in plain(self, wanted):
            is_out = next(outages, None) is not None
            yield StoreOutage("no answer for 180 s") if is_out else answer

    monkeypatch.setattr(LocalStore, "read_samples", out)
    source = _source(tmp_path, "a", None)
    stream = ShardStream([source], **SETTINGS, waits_for_store=waits)
    results = stream.results(0, lambda raw: raw.entry.key)[1]
    assert sum(isinstance(result, Fault) for result in results) == (0 if waits else 2)
    assert capsys.readouterr().out.count("the store does not answer") == (3 if waits else 0)
