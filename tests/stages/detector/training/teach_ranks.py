"""Ranks of a teacher's training for its tests: real gloo, one start of Python.

Run as a script it reads jobs, a line of json each, forks the ranks of each job and answers with
their exit statuses, negative for signals.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from teacher_scenes import TEACH

SEED = 5


class TeachRanks:
    """Starts trainings of `TEACH` over one folder of image shards."""

    def __init__(self, images: Path) -> None:
        self.images = images
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        )

    def __call__(
        self, out: Path, size: int, *, killed_step: int | None = None, **changes: Any
    ) -> list[int]:
        """Train into `out` with `changes` to `TEACH` on `size` ranks, of which the last is killed
        before it takes step `killed_step`; the ranks' exit statuses."""
        job = {"images": str(self.images), "out": str(out), "size": size, "changes": changes}
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps({**job, "killed_step": killed_step}) + "\n")
        self._server.stdin.flush()
        for line in self._server.stdout:
            if line.startswith("statuses "):
                return json.loads(line.removeprefix("statuses "))
        raise RuntimeError("the server of ranks has died")

    def close(self) -> None:
        """End the server."""
        assert self._server.stdin
        self._server.stdin.close()
        self._server.wait(timeout=300)


def serve() -> None:
    """Answer jobs until there are no more."""
    import stages.detector.training.train  # noqa: F401  the forks have it imported

    for line in sys.stdin:
        job = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pids = [_fork(job, rank, port) for rank in range(job["size"])]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(f"statuses {json.dumps(statuses)}", flush=True)


def _fork(job: dict[str, Any], rank: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(job["size"]),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        _train(job, rank)
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


def _train(job: dict[str, Any], rank: int) -> None:
    from stages.detector.training import train

    take_step = train.take_step

    def step_or_die(*args: Any) -> dict[str, float]:
        if args[-1] == job["killed_step"] and rank == job["size"] - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return take_step(*args)

    train.take_step = step_or_die
    config = dataclasses.replace(TEACH, **job["changes"])
    train.teach(config, seed=SEED, images=Path(job["images"]), out=Path(job["out"]))


if __name__ == "__main__":
    serve()
