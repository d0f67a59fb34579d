"""A rank that is killed leaves nothing: no worker, nothing in /dev/shm, nothing on disk."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from range_server import RangeServer

pytest.importorskip("aiohttp", reason="fsspec reads http through aiohttp, which is not installed")

# Prints its workers' ids and reads on, so slowly that they wait with full hands.
RANK = """
import sys, time
import torch
from torch.utils.data import DataLoader
from sharding.reading.dataset_source import DatasetSource
from sharding.reading.stream import ShardStream, positions

def collate(samples):
    images = bytearray(b"".join(sample.image for sample in samples))
    return torch.frombuffer(images, dtype=torch.uint8), samples

stream = ShardStream([DatasetSource(sys.argv[1])], seed=0, micro_batch_size=4, window_num_shards=2,
                shape_step_px=64)
loader = DataLoader(stream, batch_size=None, sampler=positions(0, 0, 1), num_workers=2,
                    prefetch_factor=50, collate_fn=collate)
batches = iter(loader)
next(batches)
print(*(worker.pid for worker in batches._workers), flush=True)
for batch in batches:
    time.sleep(0.2)
"""


@pytest.fixture
def server(tmp_path: Path, make_folder: Callable[..., Path]) -> Iterator[RangeServer]:
    server = RangeServer(make_folder(tmp_path / "far", [30, 30]))
    yield server
    server.close()


def _lives(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def _wait_until(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + 30
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A TMPDIR with a short path: PyTorch's workers hand tensors over through a socket in it, whose
    path may have 107 characters; tmp_path alone may have more."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def _first_line(rank: subprocess.Popen[str]) -> str:
    assert rank.stdout is not None
    assert select.select([rank.stdout], [], [], 60)[0], "the rank has no first batch"
    return rank.stdout.readline()


def test_nothing_is_left_of_a_rank_that_is_killed(temporary: Path, server: RangeServer) -> None:
    """Oracle: the kernel's list of processes, and the folders before and after. When two ranks get
    SIGKILL, the workers of one wait for room in a pipe, those of the other for a stalled store."""
    stalling = RangeServer(server.folder)
    shared = set(os.listdir("/dev/shm"))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, url],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": os.getcwd()},
        )
        for url in (server.url, stalling.url)
    ]
    of_rank = [[int(word) for word in _first_line(rank).split()] for rank in ranks]
    # Only now, so that the first batch is not among what never comes.
    stalling.misbehave = lambda name, number: "stall" if ".tar" in name else None
    for rank, workers in zip(ranks, of_rank):
        assert len(workers) == 2 and all(map(_lives, workers))
        time.sleep(1.0)
        assert rank.poll() is None
        os.kill(rank.pid, signal.SIGKILL)
        rank.wait()
        if rank.stdout is not None:
            rank.stdout.close()
        ended = _wait_until(lambda: not any(map(_lives, workers)))
        for worker in filter(_lives, workers):
            os.kill(worker, signal.SIGKILL)
        assert ended
    stalling.close()
    assert not os.listdir(temporary)
    # Other tests may use it too, but nothing that is there now may stay.
    left = set(os.listdir("/dev/shm")) - shared
    assert _wait_until(lambda: not left & set(os.listdir("/dev/shm")))
