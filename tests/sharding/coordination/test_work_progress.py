"""Tests of sharding.coordination.progress: the work in a folder as it is seen from outside."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from claim_workers import SETTINGS, TARS, killed_holder, make_worker, samples, work

from sharding.coordination import heartbeat
from sharding.coordination.progress import ProgressReader
from sharding.coordination.work_queue import request_rewrites
from sharding.format.schema import Failure
from sharding.writing.shard_writer import write_shard


def test_no_work_is_no_progress(tmp_path: Path) -> None:
    assert ProgressReader(tmp_path / "nothing").read() is None
    work(tmp_path)
    assert ProgressReader(tmp_path).read() is None


def test_done_running_failed_and_progress_are_counted(tmp_path: Path) -> None:
    """One shard done by another with a failure, one of other settings, one half-way, one worker
    that was killed. Oracle: counted by hand."""
    tars, whole = sorted(TARS), {**SETTINGS, "input": "x"}
    killed_holder(tmp_path)
    results = [samples(tars[0])[0], Failure(key="b", reason="r")]
    write_shard(tmp_path / tars[0], results, fingerprint=whole)
    write_shard(tmp_path / tars[1], samples(tars[1]), fingerprint={**whole, "rule": "other"})
    reader = ProgressReader(tmp_path)
    with make_worker(tmp_path, whole) as worker:
        with next(worker.claims()) as claim:
            results = claim.track(samples(claim.tar))
            next(results)
            worker._claims.heartbeat.beat()
            progress = reader.read()
            assert progress is not None
            assert (progress.num_shards, progress.num_inputs) == (6, 12)
            assert (progress.num_done, progress.num_input_done, progress.num_failed) == (1, 2, 1)
            assert (progress.num_running, progress.num_under_way) == (1, 1)
            (alive,) = progress.alive
            assert (alive.tar, alive.num_done, alive.num_inputs) == (claim.tar, 1, 2)
            assert len(progress.workers) == 2
            assert progress.seconds_left is not None
            assert abs(progress.seconds_left * progress.rate - (12 - 2 - 1)) < 1e-6
            list(results)
            write_shard(tmp_path / claim.tar, samples(claim.tar), fingerprint=whole)
    progress = reader.read()
    assert progress is not None
    assert (progress.num_done, progress.num_running, progress.alive) == (2, 0, ())
    assert progress.seconds_left is None
    request_rewrites(tmp_path, [tars[0]])
    progress = reader.read()
    assert progress is not None and progress.num_done == 1 and progress.num_failed == 0


@pytest.mark.parametrize("hours_off", [-2, 2])
def test_workers_of_other_machines_are_judged_by_what_they_do_while_watched(
    hours_off: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers of a machine whose clock is two hours off, of which one beats and one does not.
    Oracle: which one beats; by the files' times both would be dead, or both alive."""
    with make_worker(tmp_path) as beating, make_worker(tmp_path) as silent:
        files = {worker: worker._claims.heartbeat.path for worker in (beating, silent)}
        there = f"{heartbeat.this_machine()} elsewhere"
        monkeypatch.setattr(heartbeat, "this_machine", lambda: there)
        for worker in files:
            worker._claims.heartbeat._stopped.set()  # the thread's own beats
        ended = threading.Event()
        seen = (time.time() + hours_off * 3600,) * 2

        def beat() -> None:
            while not ended.wait(0.05):
                beating._claims.heartbeat.beat()
                os.utime(files[beating], seen)

        os.utime(files[silent], seen)
        thread = threading.Thread(target=beat)
        thread.start()
        try:
            work = ProgressReader(tmp_path).watch(seconds=1.2)
        finally:
            ended.set()
            thread.join()
        assert work is not None and len(work.workers) == 2
        assert len(work.alive) == 1
        (alive,) = work.alive
        assert alive.is_certain
