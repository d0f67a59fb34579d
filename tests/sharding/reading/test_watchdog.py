"""Tests of sharding.reading.watchdog: what workers write, the rank reads, and says when data
stall."""

from __future__ import annotations

import multiprocessing
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.utils.data import DataLoader, Dataset

from sharding.reading import watchdog
from sharding.reading.dataset_source import DatasetSource
from sharding.reading.stream import ShardStream
from sharding.reading.watchdog import Activity, StallWatch, StatusBoard

RETRY_SECONDS = 60


class _Stuck(Dataset[int]):
    """Item i is i; worker 1 gets stuck in a read until `freed` is set."""

    def __init__(self, board: StatusBoard) -> None:
        self.board, self.freed = board, multiprocessing.get_context("fork").Event()

    def __getitem__(self, position: int) -> int:
        self.board.begin(position)
        self.board.set_stage("read", f"train-{position:06d}.tar", "key")
        if position % 2:
            self.freed.wait()
        self.board.set_idle()
        return position


def test_the_watch_names_stage_shard_and_key_of_the_worker_that_is_stuck() -> None:
    """Oracle: a worker that waits for us; the batches come in order, and none is missing."""
    said: queue.Queue[str] = queue.Queue()
    data = _Stuck(StatusBoard())
    loader = DataLoader(data, batch_size=None, sampler=range(4), num_workers=2)
    with StallWatch(data.board, after_seconds=0.1, log=said.put) as watch:
        watched = watch.watched(loader)
        got = [next(watched)]
        # A batch may be waited for while its worker only starts; then nobody does anything yet.
        waiting = threading.Thread(target=lambda: got.append(next(watched)))
        waiting.start()
        text = said.get(timeout=RETRY_SECONDS)
        while "worker 1" not in text:
            text = said.get(timeout=RETRY_SECONDS)
        data.freed.set()
        waiting.join()
        got += list(watched)
    assert got == [0, 1, 2, 3]
    assert "no data for " in text and "worker 0" not in text
    assert "worker 1 has been in read of train-000001.tar (key key) for " in text
    assert text.endswith(" s; position 1")


def test_it_says_so_again_after_growing_times_and_not_without_a_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Oracle: a clock that the test sets: 10, 20 and 40 s into a wait; nothing while the rank is
    busy with a batch, and a new wait starts over."""
    now, said = [1000.0], list[str]()
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: now[0]))
    watch = StallWatch(StatusBoard(), after_seconds=10, log=said.append)

    def pass_seconds(seconds: int) -> list[str]:
        """What the watch, which looks every second, says in that time."""
        said.clear()
        for _ in range(seconds):
            now[0] += 1.0
            watch._check(now[0])
        return [text.partition(":")[0] for text in said]

    def slow() -> Iterator[int]:
        assert pass_seconds(45) == [f"no data for {seconds} s" for seconds in (10, 20, 40)]
        yield 0
        assert pass_seconds(25) == [f"no data for {seconds} s" for seconds in (10, 20)]
        yield 1

    for _ in watch.watched(slow()):
        assert pass_seconds(100) == []


def test_the_watch_ends_with_its_block() -> None:
    """Oracle: the thread; and after_seconds that make no sense are refused."""
    watch = StallWatch(StatusBoard(), after_seconds=1000, log=print)
    with watch:
        assert watch._thread.is_alive()
        assert list(watch.watched([1, 2])) == [1, 2]
    assert not watch._thread.is_alive()
    with pytest.raises(ValueError, match="after_seconds: got 0"):
        StallWatch(StatusBoard(), after_seconds=0, log=print)


def test_a_line_is_what_was_written_last() -> None:
    """Oracle: the calls. Names that are too long are cut, those that are not ASCII kept."""
    board = StatusBoard()
    assert board.activities() == []
    board.begin(8812)
    assert [(line.stage, line.shard, line.position) for line in board.activities()] == [
        ("open", "", 8812)
    ]
    board.set_stage("read", "é" * 200 + ".tar", "k" * 300)
    (line,) = board.activities()
    assert (line.worker, line.stage, line.shard, line.key, line.position) == (
        None,
        "read",
        "é" * 128,
        "k" * 100,
        8812,
    )
    assert str(Activity(3, "read", "a.tar", "0001", 7, 58.2)) == (
        "worker 3 has been in read of a.tar (key 0001) for 58 s; position 7"
    )
    assert str(Activity(None, "collate", "", "", 7, 0.0)) == (
        "the rank itself has been in collate for 0 s; position 7"
    )


def test_a_stream_writes_what_it_does(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    """Oracle: the calls on a board that keeps them: a manifest is opened once, samples are read."""

    class Kept(StatusBoard):
        def set_stage(self, stage: str, shard: str = "", key: str = "") -> None:
            calls.append((stage, shard, key))

    calls: list[tuple[str, str, str]] = []
    stream = ShardStream(
        [DatasetSource(make_folder(tmp_path, [2, 1]))],
        seed=0,
        micro_batch_size=3,
        window_num_shards=2,
        shape_step_px=64,
        board=Kept(),
    )
    samples = stream[0]
    opened = {call for call in calls if call[0] == "open" and call[1]}
    read = [call for call in calls if call[0] == "read"]
    assert opened == {("open", f"train-{shard:06d}.tar", "") for shard in range(2)}
    assert sorted(key for _, _, key in read) == sorted(sample.key for sample in samples)
    assert calls[0] == ("open", "", "") and calls[-1] == ("idle", "", "")
