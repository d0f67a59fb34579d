"""A training loop of the smallest kind, for drills of the launchers: ranks sum numbers over gloo,
keep a checkpoint of a few bytes, and record when each step was done.

    python -m benchmarks.launch.small_trainer FOLDER NUM_STEPS SECONDS_A_STEP

A step adds the numbers of its own samples, so the last sum shows whether each was counted once.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed

from launch.logs import LOG_FOLDER_VARIABLE, open_log, record_failure
from launch.processes.heartbeat import Heartbeat, exit_after_parent
from launch.processes.marked_processes import end_with_parent

CHECKPOINT, STEPS = "checkpoint.json", "steps.jsonl"
SAMPLES_A_STEP = 12
"""Split evenly by worlds of 1, 2, 3, 4 and 6 ranks."""


def main() -> int:
    """One rank; exit status 143 after a checkpoint when it got SIGTERM."""
    folder, num_steps, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    rank = int(os.environ["RANK"])
    logs = Path(os.environ[LOG_FOLDER_VARIABLE])
    open_log(logs, rank)
    end_with_parent(signal.SIGKILL)
    exit_after_parent(5.0)
    heartbeat = Heartbeat(rank)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    try:
        torch.distributed.init_process_group("gloo", timeout=timedelta(minutes=30))
        return train(folder, num_steps, seconds, heartbeat, stopped)
    except Exception as error:
        record_failure(logs, rank, error, is_users=False)
        return 1


def train(
    folder: Path, num_steps: int, seconds: float, heartbeat: Heartbeat, stopped: list[int]
) -> int:
    """From the checkpoint to the last step."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    state = {"step": 0, "sum": 0}
    if (folder / CHECKPOINT).exists():
        state = json.loads((folder / CHECKPOINT).read_text())
    while state["step"] < num_steps:
        time.sleep(seconds)
        first = state["step"] * SAMPLES_A_STEP
        own = sum(range(first + rank, first + SAMPLES_A_STEP, world))
        total = torch.tensor([own, len(stopped)], dtype=torch.int64)
        torch.distributed.all_reduce(total)
        state = {"step": state["step"] + 1, "sum": state["sum"] + int(total[0])}
        heartbeat.beat(state["step"])
        if rank == 0:
            _record(folder, state, world)
        if total[1]:
            return 143
    return 0


def _record(folder: Path, state: dict[str, int], world: int) -> None:
    beside = folder / f"{CHECKPOINT}.tmp"
    beside.write_text(json.dumps(state))
    beside.replace(folder / CHECKPOINT)
    line = {"time": time.time(), "host": socket.gethostname(), "world": world, **state}
    with (folder / STEPS).open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    sys.exit(main())
