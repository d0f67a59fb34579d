"""Ranks of a pretraining run for its tests: real DeepSpeed, real gloo, one start of Python.

Run as a script it reads jobs, a line of json each, forks the ranks of each job and answers with
what became of them; so the expensive imports are made once. What happens to a rank on the way (a kill, a
signal, a loss that is not a number) is in the job: see `_spoil`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipeline.recipe.dataclass_values import build
from stages.pretrain.config import PretrainConfig
from stages.student.config import StudentConfig

LONGEST_SECONDS = 300.0
JOB = "job: "


class Ranks:
    """Starts pretraining runs over one folder of object shards."""

    def __init__(self, objects: Path, student: StudentConfig) -> None:
        self.objects, self._student = objects, student
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        )

    def __call__(
        self, config: PretrainConfig, root: Path, *, world_size: int, spoil: str = "", step: int = 0
    ) -> list[str]:
        """Run into `root`; for each rank "done", "ErrorType: text", or "signal N".

        `root`/trace-RANK.jsonl has a line for every micro-batch: position and keys;
        `root`/codes-RANK.jsonl one for every step of a visual dictionary: a digest of its codes;
        `root`/statistics-RANK.pt the BatchNorms' of the last step before the ranks average them.
        """
        root.mkdir(exist_ok=True)
        job = {
            "config": asdict(config),
            "student": asdict(self._student),
            "root": str(root),
            "objects": str(self.objects),
            "world_size": world_size,
            "spoil": spoil,
            "step": step,
        }
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        for line in self._server.stdout:
            if line.startswith(JOB):
                return json.loads(line[len(JOB) :])
        raise RuntimeError("the server of ranks has died")

    def with_student(self, student: StudentConfig) -> Ranks:
        """The same server for runs of another student."""
        other = copy.copy(self)
        other._student = student
        return other

    def close(self) -> None:
        """End the server."""
        assert self._server.stdin
        self._server.stdin.close()
        self._server.wait(timeout=300)


def serve() -> None:
    """Answer jobs until there are no more."""
    import stages.pretrain.run  # noqa: F401  the forks have it imported

    for line in sys.stdin:
        print(JOB + json.dumps(_run_job(json.loads(line))), flush=True)


def _run_job(job: dict[str, Any]) -> list[str]:
    """Fork the ranks. When one is killed the others are too, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = [_fork(job, rank, port) for rank in range(job["world_size"])]
    ended: dict[int, str] = {}
    deadline = time.monotonic() + LONGEST_SECONDS
    while len(ended) < len(pids):
        for rank, pid in enumerate(pids):
            if rank not in ended and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                status = os.waitpid(pid, 0)[1]
                ended[rank] = _outcome(job, rank, status)
        late = time.monotonic() > deadline
        if late or any(text.startswith("signal") for text in ended.values()):
            for rank, pid in enumerate(pids):
                if rank not in ended:
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return [ended[rank] for rank in range(len(pids))]


def _outcome(job: dict[str, Any], rank: int, status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return Path(job["root"], f"outcome-{rank}").read_text()


def _fork(job: dict[str, Any], rank: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        root = Path(job["root"])
        log = os.open(root / f"log-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(job["world_size"]),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        outcome = _run_rank(job, rank)
        (root / f"outcome-{rank}").write_text(outcome)
    finally:
        os._exit(0)


def _run_rank(job: dict[str, Any], rank: int) -> str:
    from stages.pretrain.run import pretrain

    root = Path(job["root"])
    _trace(root / f"trace-{rank}.jsonl")
    _trace_codes(root / f"codes-{rank}.jsonl")
    _trace_statistics(root / f"statistics-{rank}.pt")
    _spoil(job["spoil"], job["step"], rank)
    try:
        pretrain(
            build(PretrainConfig, job["config"]),
            student=build(StudentConfig, job["student"]),
            seed=0,
            objects=Path(job["objects"]),
            out=root / "pretrain",
            student_out=root / "student",
        )
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return "done"


def _trace(path: Path) -> None:
    """Note every micro-batch that the rank trains on, turns that count nothing apart."""
    from stages.pretrain.data.batches import Batches
    from stages.training.batches import LoadedBatch

    plain = Batches.__getitem__

    def traced(self: Batches, turn: Any) -> LoadedBatch:
        loaded = plain(self, turn)
        if not loaded.turn.is_padding:
            keys = loaded.batch.keys if loaded.batch else []
            with path.open("a") as file:
                file.write(json.dumps({"position": turn.position, "keys": keys}) + "\n")
        return loaded

    Batches.__getitem__ = traced  # type: ignore[method-assign]


def _trace_codes(path: Path) -> None:
    """Note a digest of the dictionary's codes after every step."""
    from stages.student.vision.visual_dictionary import Dictionary

    plain = Dictionary.learn

    def traced(self: Dictionary) -> None:
        plain(self)
        digest = hashlib.sha256(self.codes.numpy().tobytes()).hexdigest()
        with path.open("a") as file:
            file.write(json.dumps({"codes": digest}) + "\n")

    Dictionary.learn = traced  # type: ignore[method-assign]


def _trace_statistics(path: Path) -> None:
    """Note each running mean and variance of the model before `average_statistics`."""
    import torch

    from stages.training import loop

    plain = loop.average_statistics

    def traced(net: torch.nn.Module) -> None:
        state = {name: value.clone() for name, value in net.named_buffers() if "running_" in name}
        torch.save(state, path)
        plain(net)

    loop.average_statistics = traced


def _spoil(what: str, step: int, rank: int) -> None:
    """What happens to the last rank in step `step` (counted from 1), before its forward pass.

    kill: SIGKILL. term: SIGTERM. nan: the next loss of ITM is not a number.
    gradient, gradients: the gradient of the next loss of ITM, or of all from there on, is not.
    kill-saving: SIGKILL of rank 0 when the step's checkpoint is written, all but `latest`.
    """
    from stages.pretrain.objectives.itm import Itm
    from stages.training.checkpoints import save_and_load
    from stages.training.loop import Loop

    plain, write_text = Loop.step, save_and_load.write_text

    def spoiled(self: Loop) -> None:
        if self.state.step + 1 == step and what == "nan":
            Itm.score = _not_a_number(Itm)  # type: ignore[method-assign]
        elif self.state.step + 1 == step and what.startswith("gradient"):
            Itm.score = _bad_gradient(Itm, once=what == "gradient")  # type: ignore[method-assign]
        elif self.state.step + 1 == step:
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "term": signal.SIGTERM}[what])
        plain(self)

    def dying(path: Path, text: str) -> None:
        if text == f"step-{step:08d}":
            os.kill(os.getpid(), signal.SIGKILL)
        write_text(path, text)

    if what == "kill-saving":
        save_and_load.write_text = dying
    elif what and rank == int(os.environ["WORLD_SIZE"]) - 1:
        Loop.step = spoiled  # type: ignore[method-assign]


def _not_a_number(objective: type[Any]) -> Callable[..., Any]:
    score = objective.score

    def wrapped(*args: Any) -> Any:
        objective.score = score
        scored = score(*args)
        return replace(scored, loss=scored.loss * float("nan"))

    return wrapped


def _bad_gradient(objective: type[Any], *, once: bool) -> Callable[..., Any]:
    score = objective.score

    def wrapped(*args: Any) -> Any:
        if once:
            objective.score = score
        scored = score(*args)
        scored.loss.register_hook(lambda gradient: gradient * float("nan"))
        return scored

    return wrapped


if __name__ == "__main__":
    serve()
