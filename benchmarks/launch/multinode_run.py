"""One pretraining on the nodes of benchmarks.launch.cluster, of ranks that record what they train
on (benchmarks.launch.recorded_pretraining): started, waited for, and measured after a fault."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.launch.cluster import Cluster
from benchmarks.launch.recorded_pretraining import read_turns
from launch.events import read_events
from launch.paths import JobPaths
from pipeline.runner.run_folder import RunFolder

LONGEST_SECONDS = 900.0


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Seconds from a fault until Slurm gave up a node, until a supervisor recorded the cause of a
    restart, until ranks began, until their first batch, and until a step that was new; None for
    what did not happen."""

    verdict: float | None = None
    cause: float | None = None
    began: float | None = None
    batch: float | None = None
    step: float

    def __str__(self) -> str:
        parts = {
            "Slurm's verdict": self.verdict,
            "cause recorded": self.cause,
            "ranks began": self.began,
            "first batch": self.batch,
            "next step": self.step,
        }
        known = [
            f"{name} {seconds:.1f} s" for name, seconds in parts.items() if seconds is not None
        ]
        return ", ".join(known) + " after the fault"


@dataclass
class Training:
    """A run folder on the cluster, and the processes that launch it."""

    cluster: Cluster
    root: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, where: tuple[str, ...], **launch: Any) -> None:
        """Start a launcher on ``where``: the words of the cluster's script that lead there."""
        module = [sys.executable, "-m", "benchmarks.launch.recorded_pretraining", "launch"]
        words = [*where, *module, str(self.root), json.dumps(launch)]
        log = self.root / f"screen-{len(self.processes)}.log"
        self.processes.append(self.cluster.start(*words, log=log))

    def wait(self) -> list[int]:
        """Exit statuses of all launchers that were started."""
        return [process.wait(LONGEST_SECONDS) for process in self.processes]

    @property
    def screens(self) -> str:
        """What the launchers printed."""
        paths = sorted(self.root.glob("screen-*.log"))
        return "\n".join(path.read_text(errors="replace") for path in paths)

    @property
    def step(self) -> int:
        """The last step in the metrics; 0 before the first."""
        path = RunFolder(self.root).pretrain / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        steps = [json.loads(line)["step"] for line in lines if line.endswith("}")]
        return max(steps, default=0)

    @property
    def world(self) -> int:
        """The number of ranks of the start that took a turn last."""
        return int(read_turns(self.root)[-1]["world"])

    def wait_for_step(self, step: int, world: int | None = None) -> float:
        """Until a step after ``step`` is done, by ``world`` ranks; when that was. RuntimeError with
        all screens when every launcher has ended before."""
        deadline = time.monotonic() + LONGEST_SECONDS
        while time.monotonic() < deadline:
            if self.step > step and world in (None, self.world):
                return time.time()
            if all(process.poll() is not None for process in self.processes):
                break
            time.sleep(0.2)
        raise RuntimeError(f"{self.root}: no step after {step}, world {world}:\n{self.screens}")

    def recovery(self, fault_time: float, world: int | None = None) -> Recovery:
        """What happened after a fault, once ranks that began after it have made a step that the
        others had not made."""
        deadline = time.monotonic() + LONGEST_SECONDS
        while not (turns := self._turns_since(fault_time, world)):
            if time.monotonic() > deadline or all(p.poll() is not None for p in self.processes):
                raise RuntimeError(f"{self.root}: nothing started again:\n{self.screens}")
            time.sleep(0.2)
        step = self.wait_for_step(max(self.step, turns[0]["start"]))
        verdict = self.cluster.node_down_time(fault_time)
        causes = [time for time, _ in self.restarts() if time > fault_time]
        return Recovery(
            verdict=None if verdict is None else verdict - fault_time,
            cause=min(causes) - fault_time if causes else None,
            began=min(turn["began"] for turn in turns) - fault_time,
            batch=min(turn["time"] for turn in turns) - fault_time,
            step=step - fault_time,
        )

    def _turns_since(self, fault_time: float, world: int | None) -> list[dict[str, Any]]:
        return [
            turn
            for turn in read_turns(self.root)
            if turn["began"] > fault_time and world in (None, turn["world"])
        ]

    def restarts(self) -> list[tuple[float, str]]:
        """When (seconds since 1970) and why the supervisors started ranks again."""
        events = read_events(JobPaths(RunFolder(self.root).logs("pretrain")).events)
        return [(e["time_seconds"], e["cause"]) for e in events if e["event"] == "restart"]

    def job_id(self) -> str:
        """Its Slurm job."""
        stored = RunFolder(self.root).logs("pretrain") / "job.json"
        return str(json.loads(stored.read_text())["job_id"])

    def clean_up(self) -> None:
        """End what is left of it on all nodes, and bring them all back."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
        for job_id in self.cluster("ctl", "squeue", "-h", "-o", "%A").split():
            self.cluster("ctl", "scancel", job_id)
        for node in ("n1", "n2", "n3"):
            self.cluster("heal", node)
            self.cluster.signal(node, "benchmarks.launch.recorded_pretraining", "KILL")
            self.cluster.signal_ranks(node, "KILL")
            self.cluster("start", node)  # only says so where it is up
        self.cluster.resume()
        self.cluster.wait_until_idle()
