"""Two writers of one shard, on machines whose clocks are minutes apart, stopped at random moments.

    python -m benchmarks.sharding.two_writers [--rounds 1000] [--seed 0]

Each round two worker processes, which pretend to be two machines, make the same shard. The file
times that one of them leaves are minutes before or after the other's, as on a network file system
that stamps with the client's clock. Each fills the pictures with bytes of its own, so that a tar of
one beside a manifest of the other is seen. Either is stopped (SIGSTOP) one to three times, mostly
for longer than a lease, and then continues with a shard that the other has taken over.
A round is right when both processes end well, and the shard is done and verifies to the last byte.
Exit status 1 where one is not; its folder is then kept.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sharding.coordination import heartbeat
from sharding.coordination.claims import Worker
from sharding.format.manifest import is_done
from sharding.format.schema import Sample
from sharding.tools.verify import verify_shard
from sharding.writing.shard_writer import write_shard
from stages.progress import Progress

TAR, FINGERPRINT, NUM_SAMPLES = "train-000000.tar", {"is": "the same"}, 12
LEASE_SECONDS = 0.08
LONGEST_SAMPLE_SECONDS, LONGEST_RUN_SECONDS, LONGEST_STOP_SECONDS = 0.004, 0.06, 0.3
MINUTES_APART = (-9.0, -3.0, -1.2, 1.2, 3.0, 9.0)


@dataclass
class Counts:
    """What was done to the writers, and what came of it."""

    rounds: int = 0
    stops: int = 0
    takeovers: int = 0
    given_up: int = 0
    failed_writers: int = 0
    unfinished: int = 0
    invalid: int = 0

    @property
    def num_wrong(self) -> int:
        """Rounds and writers that did not end as they should."""
        return self.failed_writers + self.unfinished + self.invalid

    def __str__(self) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in vars(self).items())


def play_round(root: Path, random_moments: random.Random, counts: Counts) -> None:
    """One round in the new folder `root`, counted in `tally`."""
    out = root / "out"
    out.mkdir(parents=True)
    apart_seconds = 60 * random_moments.choice(MINUTES_APART)
    seeds = [random_moments.getrandbits(32) for _ in range(2)]
    writers = [
        _fork(functools.partial(_write, out, name, offset, seed))
        for name, offset, seed in zip(("alpha", "beta"), (0.0, apart_seconds), seeds)
    ]
    for _ in range(random_moments.randint(1, 3)):
        time.sleep(random_moments.random() * LONGEST_RUN_SECONDS)
        stopped = random_moments.choice(writers)
        os.kill(stopped, signal.SIGSTOP)
        time.sleep(random_moments.random() * LONGEST_STOP_SECONDS)
        os.kill(stopped, signal.SIGCONT)
        counts.stops += 1
    counts.failed_writers += sum(os.waitpid(pid, 0)[1] != 0 for pid in writers)
    judge(out, counts)
    said = "".join(path.read_text() for path in root.glob("*.log"))
    counts.takeovers += said.count("Took over")
    counts.given_up += said.count("Lost the claim")
    counts.rounds += 1


def judge(out: Path, counts: Counts) -> None:
    """Count a shard that is not done, or calls itself done and is not what its manifest says."""
    if not is_done(out / TAR, FINGERPRINT):
        counts.unfinished += 1
    elif verify_shard(out / TAR, full=True):
        counts.invalid += 1


def _fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def _write(out: Path, name: str, offset_seconds: float, seed: int) -> None:
    """A worker of machine `name`, whose clock is off, until the shard is done."""
    moments = random.Random(seed)
    _be_another_machine(name, offset_seconds)

    def samples() -> Iterator[Sample]:
        info = {"captions": ["a"], "width": 1, "height": 1}
        for number in range(NUM_SAMPLES):
            time.sleep(moments.random() * LONGEST_SAMPLE_SECONDS)
            yield Sample(
                key=f"k{number}", image=name[:1].encode() * 400, extension="png", info=info
            )

    with (
        open(out.parent / f"{name}.log", "a", encoding="utf-8") as log,
        Worker(
            out,
            {TAR: NUM_SAMPLES},
            {TAR: FINGERPRINT},
            lease_seconds=LEASE_SECONDS,
            log=lambda text: print(text, file=log, flush=True),
        ) as worker,
    ):
        for claim in worker.claims():
            with claim:
                write_shard(
                    out / TAR,
                    claim.track(samples()),
                    fingerprint=FINGERPRINT,
                    check_owner=claim.check_owner,
                )


def _be_another_machine(name: str, offset_seconds: float) -> None:
    """From here on this process has that name, and leaves file times of a clock that is off."""
    true_time, true_beat = time.time, heartbeat.Heartbeat.beat

    def beat(self: heartbeat.Heartbeat) -> None:
        true_beat(self)
        os.utime(self._descriptor, (true_time() + offset_seconds,) * 2)

    heartbeat.this_machine = lambda: name
    time.time = lambda: true_time() + offset_seconds
    heartbeat.Heartbeat.beat = beat  # type: ignore[method-assign]


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    moments, counts = random.Random(args.seed), Counts()
    base = Path(tempfile.mkdtemp(prefix="boxless-two-writers-"))
    with Progress("two writers", total=args.rounds, unit="rounds") as progress:
        for number in range(args.rounds):
            before = counts.num_wrong
            play_round(base / str(number), moments, counts)
            if counts.num_wrong == before:
                shutil.rmtree(base / str(number))
            progress.advance(1)
    print(counts)
    print(
        f"{counts.num_wrong} wrong" + (f"; their folders are in {base}" if counts.num_wrong else "")
    )
    if not counts.num_wrong:
        shutil.rmtree(base)
    return 1 if counts.num_wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
