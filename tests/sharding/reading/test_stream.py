"""Tests of sharding.reading.stream, through PyTorch's DataLoader with workers and several fake
ranks."""

from __future__ import annotations

import gc
import itertools
import json
import os
import pickle
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from boxless.errors import BoxlessError
from sharding.format.catalog import read_catalog
from sharding.format.manifest import manifest_path, read_manifest
from sharding.format.schema import Sample, ShardError
from sharding.reading import local_store
from sharding.reading.dataset_source import DatasetSource
from sharding.reading.sample_reader import iterate
from sharding.reading.stream import ShardStream, positions
from sharding.writing.shard_writer import write_shard

MakeFolder = Callable[..., Path]
COUNTS = [7, 0, 12, 3, 9]


def _stream(folder: Path, **changes: Any) -> ShardStream:
    config = {"seed": 3, "micro_batch_size": 4, "window_num_shards": 2, "shape_step_px": 16}
    return ShardStream([DatasetSource(folder)], **{**config, **changes})


def _same(one: Sample, two: Sample) -> bool:
    assert one.objects is not None and two.objects is not None
    return (one.key, one.image, one.extension, one.info, one.objects.tobytes()) == (
        two.key,
        two.image,
        two.extension,
        two.info,
        two.objects.tobytes(),
    )


def _loader(stream: ShardStream, order: Any, num_workers: int, **settings: Any) -> DataLoader:
    return DataLoader(stream, batch_size=None, sampler=order, num_workers=num_workers, **settings)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_is_what_was_written(
    tmp_path: Path, make_folder: MakeFolder, make_sample: Callable[..., Sample], num_workers: int
) -> None:
    """Oracle: make_sample, every sample once; items are micro-batches, in order."""
    stream = _stream(make_folder(tmp_path, COUNTS))
    num = stream.num_micro_batches
    batches = list(_loader(stream, positions(num, 0, 1, 2 * num), num_workers))
    assert [len(batch) for batch in batches] == [
        len(stream.plan[position].samples) for position in range(num, 2 * num)
    ]
    got = {sample.key: sample for batch in batches for sample in batch}
    assert sum(map(len, batches)) == len(got) == sum(COUNTS)
    for index in range(sum(COUNTS)):
        assert _same(got[f"picture-{index:05d}"], make_sample(index))


def test_ranks_that_come_and_go_see_everything_once(
    tmp_path: Path, make_folder: MakeFolder
) -> None:
    """Oracle: keys of two epochs counted: 2 each. 3 ranks with 2 workers, then 1, then 2 ranks,
    each world beginning at the position where the one before it stopped.
    """
    folder = make_folder(tmp_path, COUNTS)
    end = 2 * _stream(folder).num_micro_batches
    seen: Counter[str] = Counter()
    start = 0
    for world_size, num_workers, stop in ((3, 2, 6), (1, 1, 9), (2, 0, end)):
        for rank in range(world_size):
            order = positions(start, rank, world_size, stop)
            for batch in _loader(_stream(folder), order, num_workers):
                seen.update(sample.key for sample in batch)
        start = stop
    assert len(seen) == sum(COUNTS) and set(seen.values()) == {2}


def test_copies_in_other_processes_open_their_own_files(
    tmp_path: Path, make_folder: MakeFolder
) -> None:
    """Oracle: the stream itself, after use, pickled."""
    stream = _stream(make_folder(tmp_path, COUNTS))
    expected = [stream[position] for position in range(5)]
    copy = pickle.loads(pickle.dumps(stream))
    got = [copy[position] for position in range(5)]
    for one, two in zip(itertools.chain(*got), itertools.chain(*expected), strict=True):
        assert _same(one, two)


def test_workers_of_a_fork_server_read_to_the_end(tmp_path: Path, make_folder: MakeFolder) -> None:
    """They are children of the server, not of the rank. Oracle: the stream itself; longer than it
    takes a worker to look for its parent."""
    stream = _stream(make_folder(tmp_path, COUNTS))
    order = positions(0, 0, 1, stream.num_micro_batches)
    loader = _loader(stream, order, 1, multiprocessing_context="forkserver", prefetch_factor=1)
    keys = []
    for batch in loader:
        keys.append([sample.key for sample in batch])
        time.sleep(0.2)
    assert keys == [[sample.key for sample in batch] for batch in stream]


def test_few_files_are_open_at_once(
    tmp_path: Path, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: /proc's list of this process, while an epoch over 12 shards goes by; none after."""
    monkeypatch.setattr(local_store, "NUM_TARS_OPEN", 3)
    stream = _stream(make_folder(tmp_path, [2] * 12))

    def num_open() -> int:
        links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
        return sum(os.path.realpath(link).startswith(f"{tmp_path}/train") for link in links)

    assert num_open() == 0
    most = 0
    for position in range(stream.num_micro_batches):
        stream[position]
        most = max(most, num_open())
    # The tars of one micro-batch are all open while it is read.
    assert most == 3
    del stream
    gc.collect()
    assert num_open() == 0


def _flip_a_bit(tar: Path) -> None:
    data = bytearray(tar.read_bytes())
    data[read_manifest(tar).samples[1].members["objects.npy"][0] + 140] ^= 4
    tar.write_bytes(data)


def _written_again(tar: Path) -> None:
    samples = list(iterate(tar))
    write_shard(tar, samples[::-1], fingerprint={})


@pytest.mark.parametrize(
    "damage, key, cause",
    [
        (_flip_a_bit, "picture-00001", "got CRC-32"),
        (lambda tar: os.truncate(tar, tar.stat().st_size - 512), None, "cut short or replaced"),
        (lambda tar: tar.unlink(), None, "No such file"),
        (_written_again, None, "written again"),
        (lambda tar: manifest_path(tar).unlink(), None, "No such .*expected the shard's manifest"),
    ],
    ids=["bit", "cut", "deleted", "rewritten", "no manifest"],
)
def test_damage_during_training_is_named(
    tmp_path: Path,
    make_folder: MakeFolder,
    damage: Callable[[Path], object],
    key: str | None,
    cause: str,
) -> None:
    """Oracle: the shard, the key if one, and the cause in a ShardError."""
    folder = make_folder(tmp_path, [5, 5])
    stream = _stream(folder)
    damage(folder / "train-000000.tar")
    with pytest.raises(ShardError) as caught:
        list(_loader(stream, positions(0, 0, 1, stream.num_micro_batches), 0))
    text = str(caught.value)
    assert "train-000000.tar" in text and re.search(cause, text) and (key is None or key in text)


def test_damage_is_named_out_of_a_worker_too(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Oracle: type, shard and key survive the way from the worker process."""
    folder = make_folder(tmp_path, [5, 5])
    stream = _stream(folder)
    _flip_a_bit(folder / "train-000000.tar")
    batches = iter(_loader(stream, positions(0, 0, 1, stream.num_micro_batches), 1))
    with pytest.raises(ShardError, match="train-000000.tar: sample picture-00001: got CRC-32"):
        list(batches)
    # Left to the garbage collector after an error, torch's iterator waits 5 s for its workers.
    batches.__del__()  # type: ignore[attr-defined]


def test_a_tar_cut_while_it_is_read_is_noticed(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Oracle: the stream has read from the tar before, so it holds it open as it shrinks."""
    stream = _stream(make_folder(tmp_path, [5]))
    stream[0]
    os.truncate(tmp_path / "train-000000.tar", 700)
    with pytest.raises(ShardError, match="train-000000.tar: .*got 700 bytes, .* cut short"):
        list(_loader(stream, positions(0, 0, 1, stream.num_micro_batches), 0))


def test_other_bytes_of_the_right_size_are_noticed(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Oracle: a tar replaced by one of the same size; its samples are not handed out."""
    folder = make_folder(tmp_path, [5])
    tar = folder / "train-000000.tar"
    stream = _stream(folder)
    tar.write_bytes(np.random.default_rng(0).bytes(read_catalog(folder).shards[0].bytes))
    with pytest.raises(ShardError, match="train-000000.tar: sample picture-0000. *: got CRC-32"):
        stream[0]


def test_a_lenient_reader_names_what_it_leaves_out(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Oracle: one sample flipped, one shard gone, one whole: what is read and what is named make
    up the epoch, at every position as many as the order says."""
    folder = make_folder(tmp_path, [5, 4, 6])
    stream = _stream(folder)
    _flip_a_bit(folder / "train-000000.tar")
    manifest_path(folder / "train-000001.tar").unlink()
    keys, faults = [], []
    for position in range(stream.num_micro_batches):
        reading = stream.read(position)
        assert (reading.position, reading.epoch) == (position, 0)
        num = len(reading.samples) + len(reading.faults)
        assert num == len(stream.plan[position].samples)
        keys += [sample.key for sample in reading.samples]
        faults += reading.faults
    assert sorted(keys) == [f"picture-{index:05d}" for index in (0, 2, 3, 4, *range(9, 15))]
    named = Counter((Path(fault.tar).name, fault.key) for fault in faults)
    assert named == {("train-000000.tar", "picture-00001"): 1, ("train-000001.tar", None): 4}
    assert all(
        str(tmp_path) not in fault.cause.partition("expected")[0] or fault.key is None
        for fault in faults
    )


def test_the_state_is_the_position_and_the_order_it_belongs_to(
    tmp_path: Path, make_folder: MakeFolder
) -> None:
    """Oracle: it is given back by the same settings over the same shards wherever they lie, and
    refused by any others, and so is anything that is not a state."""
    folder = make_folder(tmp_path / "a", COUNTS)
    state = _stream(folder).state(1234)
    assert state["position"] == 1234 and len(state) == 2
    assert json.loads(json.dumps(state)) == state
    folder = folder.rename(tmp_path / "b")
    assert _stream(folder).position(state) == 1234
    others = [
        _stream(folder, seed=4),
        _stream(folder, micro_batch_size=5),
        _stream(folder, window_num_shards=3),
        _stream(folder, shape_step_px=32),
        _stream(make_folder(tmp_path / "c", COUNTS[::-1])),
        _of([DatasetSource(folder, weight=1)], shape_step_px=16),
        _of([DatasetSource(folder), DatasetSource(folder)], shape_step_px=16),
    ]
    for other in others:
        with pytest.raises(ShardError, match="state: got position 1234 of order"):
            other.position(state)
    for broken in ({}, {"position": -1, **{"order": state["order"]}}, {"position": True}):
        with pytest.raises(ShardError, match="expected what ShardStream.state gave"):
            _stream(folder).position(broken)


def _of(sources: list[DatasetSource], shape_step_px: int = 64) -> ShardStream:
    return ShardStream(
        sources, seed=3, micro_batch_size=4, window_num_shards=2, shape_step_px=shape_step_px
    )


@pytest.fixture
def two_sets(tmp_path: Path, make_folder: MakeFolder) -> tuple[Path, Path]:
    """12 and 8 samples, of the same keys as far as they go, told apart by their folders."""
    return make_folder(tmp_path / "large", [6, 6]), make_folder(tmp_path / "small", [4, 4])


def test_weighted_sources_come_in_their_ratio_each_once_an_epoch(
    two_sets: tuple[Path, Path],
) -> None:
    """Oracle: micro-batches of a cycle counted; the keys of three epochs of each set: 3 each."""
    large, small = two_sets
    stream = _of([DatasetSource(large, weight=1), DatasetSource(str(small), weight=2)])
    assert stream.num_micro_batches == 3
    seen: dict[int, Counter[str]] = {0: Counter(), 1: Counter()}
    for cycle in range(9):
        sources = []
        for position in range(3 * cycle, 3 * cycle + 3):
            sources.append(stream.plan[position].source)
            seen[sources[-1]].update(sample.key for sample in stream[position])
        assert sorted(sources) == [0, 1, 1]
    # 9 of the large one's micro-batches are 3 epochs of 3, 18 of the small one's 9 of 2.
    assert seen[0] == Counter({f"picture-{index:05d}": 3 for index in range(12)})
    assert seen[1] == Counter({f"picture-{index:05d}": 9 for index in range(8)})


def test_sources_without_weights_are_one_set(two_sets: tuple[Path, Path]) -> None:
    """Oracle: keys counted over an epoch; the shard that a fault names is that of its folder."""
    large, small = two_sets
    stream = _of([DatasetSource(large), DatasetSource(small)])
    assert stream.num_micro_batches == 5
    seen = Counter(sample.key for position in range(5) for sample in stream[position])
    assert seen == Counter({f"picture-{index:05d}": 1 + (index < 8) for index in range(12)})
    (small / "train-000001.tar").unlink()
    faults = [
        fault
        for position in range(5)
        for fault in _of([DatasetSource(large), DatasetSource(small)]).read(position).faults
    ]
    assert {fault.tar for fault in faults} == {str(small / "train-000001.tar")}
    assert {fault.key for fault in faults} == {f"picture-{index:05d}" for index in range(4, 8)}
    with pytest.raises(ShardError, match="1 of 2 with a weight"):
        _of([DatasetSource(large, weight=3), DatasetSource(small)])


def test_an_unfinished_or_unknown_set_is_refused_at_once(
    tmp_path: Path, make_folder: MakeFolder
) -> None:
    """Oracle: no catalog; a split that is not there."""
    with pytest.raises(ShardError, match="catalog.json: got No such file"):
        _stream(tmp_path)
    make_folder(tmp_path, [1])
    with pytest.raises(ShardError, match="split"):
        ShardStream(
            [DatasetSource(tmp_path, "heldout")],
            seed=0,
            micro_batch_size=1,
            window_num_shards=1,
            shape_step_px=1,
        )


def test_a_stream_is_a_dataset_of_an_epoch(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Its length, a loop over it, a DataLoader without a sampler, whole numbers of numpy and of
    PyTorch. Oracle: the micro-batches by their positions."""
    stream = _stream(make_folder(tmp_path, COUNTS), seed=np.int64(3), micro_batch_size=np.int32(4))
    keys = [[s.key for s in stream[position]] for position in range(stream.num_micro_batches)]
    assert len(stream) == len(keys) and [[s.key for s in batch] for batch in stream] == keys
    assert [[s.key for s in batch] for batch in DataLoader(stream, batch_size=None)] == keys
    for number in (np.int64(1), torch.tensor(1)):
        assert [s.key for s in stream[number]] == keys[1]  # type: ignore[index]


def test_a_stream_of_a_relative_folder_is_read_from_everywhere(
    tmp_path: Path, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As notebooks change folders. Oracle: the samples of the absolute one; ~ is expanded."""
    folder = make_folder(tmp_path / "shards", COUNTS)
    expected = [s.key for s in _stream(folder)[0]]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(folder.parent))
    streams = [_stream(Path(os.path.relpath(folder))), _stream(Path("~") / folder.name)]
    monkeypatch.chdir("/")
    assert [[s.key for s in stream[0]] for stream in streams] == [expected, expected]


@pytest.mark.parametrize(
    ("sources", "changes", "reported"),
    [
        ([], {}, r"sources: got \[\], expected a list"),
        ("objects", {}, "sources: got 'objects', expected a list"),
        (["objects"], {}, r"sources: got \['objects'\], expected a list"),
        (DatasetSource("objects"), {}, "sources: got DatasetSource"),
        ([DatasetSource("objects")], {"seed": "1"}, "seed: got '1', expected a whole number"),
        ([DatasetSource("objects")], {"micro_batch_size": 2.5}, "micro_batch_size: got 2.5, exp"),
        ([DatasetSource("objects")], {"shape_step_px": None}, "shape_step_px: got None, expected"),
    ],
)
def test_what_makes_no_stream_is_refused(sources: Any, changes: Any, reported: str) -> None:
    """Oracle: by hand, the argument and what it should be."""
    config = {"seed": 3, "micro_batch_size": 4, "window_num_shards": 2, "shape_step_px": 16}
    with pytest.raises(BoxlessError, match=reported):
        ShardStream(sources, **{**config, **changes})


def test_what_is_no_position_or_weight_is_refused(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Oracle: by hand."""
    stream = _stream(make_folder(tmp_path, COUNTS))
    for position in (slice(0, 2), 1.5, "a"):
        with pytest.raises(BoxlessError, match="position: got .*, expected a whole number"):
            stream[position]  # type: ignore[index]
    for weight in (0, -1, 1.5, float("nan"), True):
        with pytest.raises(BoxlessError, match="weight: got .*, expected a whole number"):
            DatasetSource(tmp_path, weight=weight)  # type: ignore[arg-type]


def test_positions_deal_to_ranks_in_turn() -> None:
    """Oracle: the lists spelled out."""
    assert [list(positions(5, rank, 3, 14)) for rank in range(3)] == [
        [5, 8, 11],
        [6, 9, 12],
        [7, 10, 13],
    ]
    assert list(itertools.islice(positions(5, 1, 3), 4)) == [6, 9, 12, 15]
    for start, rank, world_size in ((-1, 0, 1), (0, 1, 1), (0, -1, 2), (0, 0, 0)):
        with pytest.raises(ValueError, match="start, rank, world_size"):
            positions(start, rank, world_size)
