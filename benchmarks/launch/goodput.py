"""Faults on a small Slurm cluster: how long until training makes its next step, and how much of the
time was useful.

    python -m benchmarks.launch.goodput --cluster SCRIPT
    python -m benchmarks.launch.goodput --cluster SCRIPT --minutes 30 --every-seconds 120

The first makes each fault once, the second one after the other. The cluster is that of
benchmarks.launch.cluster. The ranks are those of benchmarks.launch.small_trainer: what is measured
is the launcher, not training.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.launch.cluster import SCRIPT, Cluster
from benchmarks.launch.small_trainer import SAMPLES_A_STEP, STEPS
from launch.events import read_events
from launch.paths import JobPaths

STEP_SECONDS = 0.3
TORCHRUN = r"^[^ ]*python[^ ]* -m launch.preloading.torchrun"
AGENT = r"^[^ ]*python[^ ]* -m launch.agent"
SUBMIT = """
import json, sys
from pathlib import Path
from launch.backends import slurm
from launch.config import LaunchConfig
from launch.job import Job
folder, steps, config = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
job = Job(title="goodput", module="benchmarks.launch.small_trainer", args=(str(folder), steps, "{seconds}"),
          log_folder=folder / "logs", can_restart=True, preload=("torch", "torch.distributed"))
slurm.run(job, LaunchConfig(launcher="slurm", procs_per_node=1, time_limit_minutes=120, **config))
""".format(seconds=STEP_SECONDS)


class Drill:
    """One job on the cluster, whose nodes have accidents."""

    def __init__(self, cluster: Cluster, folder: Path, config: dict[str, Any], steps: int) -> None:
        self.cluster, self.folder, self.steps = cluster, folder, steps
        folder.mkdir(parents=True)
        words = [sys.executable, "-c", SUBMIT, str(folder), str(steps), json.dumps(config)]
        self.process = cluster.start("ctl", *words, log=folder / "screen.log")

    def lines(self) -> list[dict[str, Any]]:
        """Every step that was recorded."""
        try:
            return [json.loads(line) for line in (self.folder / STEPS).read_text().splitlines()]
        except (OSError, ValueError):
            return []

    def wait_for_step(self, step: int, seconds: float) -> dict[str, Any] | None:
        """The first record of ``step`` or a later one; None after ``seconds``."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for line in self.lines():
                if line["step"] >= step:
                    return line
            if self.process.poll() is not None and not self.lines():
                return None
            time.sleep(0.1)
        return None

    def wait_for_world(self, size: int, seconds: float) -> bool:
        """Whether ``size`` ranks train, within ``seconds``."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            lines = self.lines()
            if len(lines) > 8 and lines[-1]["world"] == size:
                return True
            time.sleep(0.2)
        return False

    def wrong_sums(self) -> int:
        """Steps whose sum is not that of each sample counted once."""
        wrong = 0
        for line in self.lines():
            count = line["step"] * SAMPLES_A_STEP
            wrong += line["sum"] != count * (count - 1) // 2
        return wrong

    def nodes(self) -> list[str]:
        """The nodes that the job has now, the first one first; none while it waits."""
        listed = self.cluster("ctl", "squeue", "-h", "-t", "RUNNING", "-o", "%N").strip()
        names = self.cluster("ctl", "scontrol", "show", "hostnames", listed) if listed else ""
        return names.split()

    def faults_seen(self) -> list[str]:
        """Causes of restarts."""
        events = read_events(JobPaths(self.folder / "logs").events)
        return [event["cause"] for event in events if event["event"] == "restart"]

    def end(self) -> None:
        """Cancel the job."""
        for job_id in self.cluster("ctl", "squeue", "-h", "-o", "%A").split():
            self.cluster("ctl", "scancel", job_id)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _power(cluster: Cluster, node: str) -> None:
    cluster("kill", node)


def _cut(cluster: Cluster, node: str) -> None:
    cluster("cut", node)


def _cut_briefly(cluster: Cluster, node: str) -> None:
    cluster("cut", node)
    time.sleep(8)
    cluster("heal", node)


FAULTS: dict[str, Callable[[Cluster, str], None]] = {
    "rank killed": lambda cluster, node: cluster.signal_ranks(node, "KILL"),
    "torchrun killed": lambda cluster, node: cluster.signal(node, TORCHRUN, "KILL"),
    "agent killed": lambda cluster, node: cluster.signal(node, AGENT, "KILL"),
    "rank stopped": lambda cluster, node: cluster.signal_ranks(node, "STOP"),
    "link cut for 8 s": _cut_briefly,
    "link cut for good": _cut,
    "node without power": _power,
}
_NEEDS_REPAIR = {"link cut for good": "heal", "node without power": "start"}


def each_once(cluster: Cluster, folder: Path, config: dict[str, Any], names: list[str]) -> None:
    """Every fault in a job of its own, on the second node."""
    print(f"configuration: {config}", flush=True)
    for number, name in enumerate(names):
        drill = Drill(cluster, folder / f"{number}-{time.time_ns()}", config, 100_000)
        if not drill.wait_for_world(2, 240):
            print(f"{name}: the job did not start: {drill.folder}")
            drill.end()
            continue
        last = drill.lines()[-1]["step"]
        began = time.time()
        FAULTS[name](cluster, "n2")
        # Steps may still be on their way; after 2 s of silence, or 3 steps on, it is the next one.
        found = drill.wait_for_step(last + 6, 300)
        seconds = found["time"] - began if found else float("nan")
        world = found["world"] if found else 0
        causes = "; ".join(drill.faults_seen()) or "no restart"
        print(
            f"{name}: next steps after {seconds:.1f} s on {world} ranks, wrong sums "
            f"{drill.wrong_sums()} ({causes})",
            flush=True,
        )
        drill.end()
        if name in _NEEDS_REPAIR:
            cluster(_NEEDS_REPAIR[name], "n2")
            cluster.wait_until_idle()


def one_after_the_other(
    cluster: Cluster, folder: Path, config: dict[str, Any], minutes: float, every_seconds: float
) -> None:
    """Faults in turn, on the job's last node and its first one in turn, as long as it takes; a
    node that was lost is back 60 s later. Prints the goodput."""
    drill = Drill(cluster, folder / f"goodput-{time.time_ns()}", config, 10_000_000)
    if drill.wait_for_step(1, 240) is None:
        print("the job did not start")
        return drill.end()
    began = time.time()
    recoveries: list[tuple[float, str]] = []
    for number in range(int(minutes * 60 / every_seconds)):
        time.sleep(max(0.0, began + (number + 0.5) * every_seconds - time.time()))
        cluster.resume()
        name, nodes = list(FAULTS)[number % len(FAULTS)], drill.nodes()
        if not nodes:
            print(f"{name}: left out, as the job waits", flush=True)
            continue
        node = nodes[-1 if number % 2 == 0 else 0]
        last, at = drill.lines()[-1]["step"], time.time()
        FAULTS[name](cluster, node)
        found = drill.wait_for_step(last + 6, 300)
        recoveries.append((found["time"] - at if found else 300.0, name))
        print(f"{name} on {node} of {nodes}: {recoveries[-1][0]:.1f} s", flush=True)
        if name in _NEEDS_REPAIR:
            time.sleep(max(0.0, at + 60 - time.time()))
            cluster(_NEEDS_REPAIR[name], node)
    time.sleep(max(0.0, began + minutes * 60 - time.time()))
    _print_goodput(drill, recoveries, began)
    drill.end()


def _print_goodput(drill: Drill, recoveries: list[tuple[float, str]], began: float) -> None:
    lines = drill.lines()
    wall = time.time() - began
    useful = len({line["step"] for line in lines if line["time"] >= began})
    step_seconds = statistics.median(b["time"] - a["time"] for a, b in zip(lines, lines[1:]))
    worst, name = max(recoveries)
    goodput = useful * step_seconds / wall
    print(f"goodput {goodput:.1%} of {wall:.0f} s, {len(recoveries)} faults", flush=True)
    print(
        f"recovery: median {statistics.median(r[0] for r in recoveries):.1f} s, worst {worst:.1f} s "
        f"({name}); steps made twice {len(lines) - len({x['step'] for x in lines})}; wrong sums "
        f"{drill.wrong_sums()}"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cluster", type=Path, default=SCRIPT)
    parser.add_argument("--minutes", type=float, help="faults in turn for so long")
    parser.add_argument("--every-seconds", type=float, default=120.0)
    parser.add_argument("--min-nodes", type=int, help="default: the job waits for all its nodes")
    parser.add_argument("--only", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    args = parser.parse_args()
    if not args.cluster.is_file():
        parser.error(f"{args.cluster} does not exist; expected a script for a small cluster")
    config = {"nodes": 2} | ({"min_nodes": args.min_nodes} if args.min_nodes else {})
    cluster = Cluster(args.cluster)
    folder = Path(tempfile.mkdtemp(prefix="boxless-goodput-"))
    folder.chmod(0o755)
    try:
        cluster("up", "3")
        if args.minutes:
            one_after_the_other(cluster, folder, config, args.minutes, args.every_seconds)
        else:
            each_once(cluster, folder, config, args.only)
    finally:
        cluster.down()


if __name__ == "__main__":
    main()
