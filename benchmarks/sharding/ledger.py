"""Claims of shards by workers that die at random: how many a second, and is any lost or made
twice?

    python -m benchmarks.sharding.ledger [--shards 10000] [--workers 16] [--kills 1000] [--seed 0]

The workers are real processes of this machine; one in four believes to be on a machine of its own,
so that only its lease shows that it died. They write real shards, as small as can be: one sample
each. While they work, workers are killed with SIGKILL at random, evenly over the shards, and others
take their places. Held against the end are every shard's manifest, the bytes of every tar, and what
is left in the folder. Printed are the claims a second, the kills, the shards taken over from dead
workers, lost, made twice and differing. Exit status 1 unless the last three are 0.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from launch.processes.marked_processes import end_with_parent
from sharding.coordination import heartbeat
from sharding.coordination.claims import Worker
from sharding.coordination.work_queue import FOLDER
from sharding.format.manifest import is_done, manifest_path
from sharding.format.schema import Sample
from sharding.writing.shard_writer import write_shard

FINGERPRINT = {"benchmark": "ledger"}
REPORT_SECONDS = 10.0


@dataclass
class Crew:
    """The workers: process ids of those that run, and how many were started and killed."""

    out: Path
    logs: Path
    num_shards: int
    lease_seconds: float
    random: random.Random
    running: list[int] = field(default_factory=list)
    num_started: int = 0
    num_killed: int = 0

    def start(self) -> None:
        """One more worker."""
        self.num_started += 1
        name = f"elsewhere-{self.num_started}" if self.random.random() < 0.25 else None
        pid = os.fork()
        if pid == 0:
            _work(self.out, self.logs, self.num_shards, self.lease_seconds, name)
        self.running.append(pid)

    def kill(self) -> None:
        """SIGKILL to one of those that run, and another in its place."""
        pid = self.running.pop(self.random.randrange(len(self.running)))
        os.kill(pid, signal.SIGKILL)
        self.num_killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        self.start()

    def wait(self) -> int:
        """Until all have ended; how many ended badly."""
        return sum(os.waitpid(pid, 0)[1] != 0 for pid in self.running)


def main() -> int:
    """Run it; exit status 1 where a shard is lost, made twice or differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--kills", type=int, default=1_000)
    parser.add_argument("--lease-seconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="boxless-ledger-"))
    out, logs = root / "out", root / "logs"
    logs.mkdir()
    chance = random.Random(options.seed)
    crew = Crew(out, logs, options.shards, options.lease_seconds, chance)
    began = time.monotonic()
    for _ in range(options.workers):
        crew.start()
    working_seconds = _disturb(crew, options.kills, began)
    num_bad = crew.wait()
    seconds = time.monotonic() - began
    num_wrong = _report(crew, working_seconds, seconds) + num_bad
    if num_bad:
        print(f"{num_bad} workers ended badly; see {logs}")
    if num_wrong == 0:
        shutil.rmtree(root)
    return int(num_wrong > 0)


def _disturb(crew: Crew, num_kills: int, began: float) -> float:
    """Kill so many workers while shards are made; the seconds until all were."""
    moments = sorted(crew.random.uniform(0, crew.num_shards) for _ in range(num_kills))
    reported_at = began
    while (num_done := _num_manifests(crew.out)) < crew.num_shards:
        while moments and moments[0] <= num_done:
            moments.pop(0)
            crew.kill()
        if time.monotonic() - reported_at > REPORT_SECONDS:
            reported_at = time.monotonic()
            left = (crew.num_shards - num_done) * (reported_at - began) / max(num_done, 1)
            done = f"{num_done} of {crew.num_shards} shards, {crew.num_killed} kills"
            print(f"{done}, about {left:.0f} s left", flush=True)
        time.sleep(0.1)
    return time.monotonic() - began


def _num_manifests(out: Path) -> int:
    return sum(name.endswith(".tar.json") for name in os.listdir(out)) if out.exists() else 0


def _work(
    out: Path, logs: Path, num_shards: int, lease_seconds: float, machine: str | None
) -> None:
    """A worker's whole life; it leaves a line for each shard that it finished."""
    status = 1
    end_with_parent(signal.SIGKILL)  # hundreds of orphans would take the machine
    try:
        log = os.open(logs / f"{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if machine is not None:
            heartbeat.this_machine = lambda: machine
        tars = [f"train-{number:06d}.tar" for number in range(num_shards)]
        num_inputs, fingerprints = dict.fromkeys(tars, 1), dict.fromkeys(tars, FINGERPRINT)
        with Worker(out, num_inputs, fingerprints, lease_seconds=lease_seconds) as worker:
            for claim in worker.claims():
                with claim:
                    results = claim.track([_sample(claim.tar)])
                    target, owner = out / claim.tar, claim.check_owner
                    write_shard(target, results, fingerprint=FINGERPRINT, check_owner=owner)
                    os.write(log, f"made {claim.tar}\n".encode())
            with worker.finalize() as is_last:
                if is_last:
                    os.write(log, b"last\n")
        status = 0
    finally:
        os._exit(status)


def _sample(tar: str) -> Sample:
    info = {"captions": [tar], "width": 1, "height": 1, "image_id": tar}
    return Sample(key=tar.removesuffix(".tar"), image=tar.encode(), extension="jpg", info=info)


def _report(crew: Crew, working_seconds: float, seconds: float) -> int:
    """Print what came of it; how many shards are wrong."""
    text = "".join(path.read_text(errors="replace") for path in sorted(crew.logs.glob("*.log")))
    made = [line.removeprefix("made ") for line in text.splitlines() if line.startswith("made ")]
    names = [f"train-{number:06d}.tar" for number in range(crew.num_shards)]
    num_lost = sum(not is_done(crew.out / name, FINGERPRINT) for name in names)
    num_twice = len(made) - len(set(made))
    expected = crew.out.parent / "expected"
    num_differing = 0
    for name in names:
        write_shard(expected / name, [_sample(name)], fingerprint=FINGERPRINT)
        for path in (Path(name), manifest_path(Path(name))):
            if (crew.out / path).exists():
                same = (crew.out / path).read_bytes() == (expected / path).read_bytes()
                num_differing += not same
        for path in (expected / name, manifest_path(expected / name)):
            path.unlink()
    claims = (crew.out / FOLDER).glob("*.claim") if (crew.out / FOLDER).exists() else []
    print(
        f"{crew.num_shards} shards, {crew.num_started} workers, {crew.num_killed} killed, "
        f"{text.count('Took over')} shards taken over: {crew.num_shards / working_seconds:.0f} "
        f"claims a second ({working_seconds:.0f} s until all shards were made, {seconds:.0f} s until "
        f"all workers had ended); lost {num_lost}, made twice {num_twice}, differing {num_differing}, "
        f"claims left {len(list(claims))}"
    )
    return num_lost + num_twice + num_differing


if __name__ == "__main__":
    sys.exit(main())
