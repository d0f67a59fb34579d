"""Workers that write shards, killed with SIGKILL at random moments until the work is done.

    python -m benchmarks.sharding.kill_drill [--stage ingest|distill] [--runs 100] [--seed 0]

Each run fills a folder with 1 to 8 worker processes. They are killed one by one and all at once,
stopped (SIGSTOP) for longer than their lease and continued later, and others started, at random
moments that the seed decides; some pretend to be on another machine, so that only their lease can
show that they are dead. Then a few more are started and all run to their end. Held against the
folder of an undisturbed run are the bytes of every file, the names (so that no temporary file,
claim or heartbeat is left) and the sets of samples as `tarfile` sees them. Without --stage nine of
ten runs are of ingest. Exit status 1 on any difference; the folder is then kept.

This process imports everything once and forks the workers, so a run takes a second or two.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from sharding.coordination import heartbeat
from sharding.coordination.work_queue import FOLDER
from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.net_config import (
    BoxConfig,
    ChoiceConfig,
    PictureConfig,
    PlainConfig,
    ProposalConfig,
    TeacherConfig,
)
from stages.detector.teacher_folder import save_teacher
from stages.distill.config import DistillConfig
from stages.distill.make_object_source import make_object_source
from stages.distill.run import distill
from stages.ingest.config import IngestConfig
from stages.ingest.run import ingest

LEASE_SECONDS = 0.8
MAX_WORKERS = 8
INGEST = IngestConfig(
    num_train=72, num_heldout=12, samples_per_shard=8, lease_seconds=LEASE_SECONDS
)
DISTILL = DistillConfig(
    batch_size=4,
    phrases="lexicon",
    score_threshold=0.0,
    num_threads=1,
    lease_seconds=LEASE_SECONDS,
)
NET = TeacherConfig(
    picture=PictureConfig(shorter_px=48, longer_px=64),
    backbone=PlainConfig(stem_width=8, stage_widths=(8, 16)),
    proposals=ProposalConfig(num_proposals=8, anchor_sizes_px=((12.0,),)),
    boxes=BoxConfig(feature_size=32),
    choice=ChoiceConfig(num_top=3),
)
NAMES: dict[str, Any] = {
    "label_names": ["circle", "square", "star"],
    "attribute_names": ["red", "blue"],
}

Work = Callable[[Path], object]


@dataclass
class Counts:
    """What was done to the workers, and what came of it."""

    kills: int = 0
    stops: int = 0
    takeovers: int = 0
    failed_workers: int = 0
    differing_files: int = 0
    left_files: int = 0
    missing_files: int = 0
    differing_sample_sets: int = 0

    def add(self, other: Counts) -> None:
        """Count the other's, too."""
        for name in (one.name for one in fields(self)):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def is_clean(self) -> bool:
        """Whether every folder came out as if nothing had happened."""
        return not any(
            (
                self.failed_workers,
                self.differing_files,
                self.left_files,
                self.missing_files,
                self.differing_sample_sets,
            )
        )

    def __str__(self) -> str:
        return ", ".join(
            f"{one.name.replace('_', ' ')} {getattr(self, one.name)}" for one in fields(self)
        )


def main() -> int:
    """Run the drill; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=["ingest", "distill"])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts, began = Counts(), time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="kill-drill-"))
    works = {name: make(root) for name, make in WORKS.items() if options.stage in (None, name)}
    expected = {
        name: _undisturbed(root / f"{name}-undisturbed", work) for name, work in works.items()
    }
    for number in range(options.runs):
        stage = options.stage or ("distill" if number % 10 == 9 else "ingest")
        moments = random.Random(f"{options.seed}/{number}")
        one = drill(root / f"{number:03d}", works[stage], expected[stage], moments)
        while one.is_clean and not one.kills:  # all was done before the first blow: over again
            one = drill(root / f"{number:03d}", works[stage], expected[stage], moments)
        print(f"{number:3d} {stage:7}: {one}", flush=True)
        counts.add(one)
    print(f"\nruns {options.runs}, {counts} in {time.monotonic() - began:.0f} s")
    print("Every folder came out as undisturbed." if counts.is_clean else f"FAILED; see {root}")
    if counts.is_clean:
        _remove(root)
    return 0 if counts.is_clean else 1


def _ingest(root: Path) -> Work:
    """Ingest as a function of the folder to fill."""
    return lambda out: ingest(INGEST, seed=0, out=out, show=False)


def _distill(root: Path) -> Work:
    """Distill, of other pictures and by an untrained teacher."""
    images = root / "images"
    _wait_for_all([_forked(lambda: ingest(INGEST, seed=1, out=images, show=False), None)])
    torch.manual_seed(0)
    save_teacher(root / "teacher", FasterRCNN(NET, num_labels=3, num_attributes=2), **NAMES)
    object_source = make_object_source(DISTILL, root / "teacher")
    return lambda out: distill(
        DISTILL, images=images, object_source=object_source, out=out, show=False
    )


WORKS = {"ingest": _ingest, "distill": _distill}


@dataclass
class Undisturbed:
    """The folder of an undisturbed run, and how long it took."""

    folder: Path
    seconds: float


def _undisturbed(out: Path, work: Work) -> Undisturbed:
    began = time.monotonic()
    _wait_for_all([_forked(lambda: work(out), None)])
    return Undisturbed(out, time.monotonic() - began)


@dataclass
class Crew:
    """The workers of one run: process ids of those that run and those that are stopped."""

    work: Callable[[], object]
    log: Path
    random: random.Random
    running: list[int] = field(default_factory=list)
    stopped: list[int] = field(default_factory=list)
    num_started: int = 0

    def start(self) -> None:
        """One more; one in four pretends to be on another machine."""
        self.num_started += 1
        elsewhere = f"elsewhere-{self.num_started}" if self.random.random() < 0.25 else None
        self.running.append(_forked(self.work, self.log, machine=elsewhere))

    def kill(self, pids: list[int], counts: Counts) -> None:
        """SIGKILL to some, stopped or not; those that had ended before by themselves do not
        count."""
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        statuses = [os.waitpid(pid, 0)[1] for pid in pids]
        self.running = [pid for pid in self.running if pid not in pids]
        self.stopped = [pid for pid in self.stopped if pid not in pids]
        counts.kills += sum(os.WIFSIGNALED(status) for status in statuses)
        counts.failed_workers += sum(
            os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0 for status in statuses
        )

    def stop(self, pid: int) -> None:
        """SIGSTOP to one."""
        os.kill(pid, signal.SIGSTOP)
        self.running.remove(pid)
        self.stopped.append(pid)

    def finish(self) -> int:
        """Let some that start now, and all that run, come to their end; then wake those that are
        stopped. Returns how many ended badly."""
        for _ in range(self.random.randint(1, 3)):
            self.start()
            time.sleep(self.random.uniform(0, 0.1))
        num_failed = _wait_for_all(self.running)
        for pid in self.stopped:
            os.kill(pid, signal.SIGCONT)
        return num_failed + _wait_for_all(self.stopped)


def drill(out: Path, work: Work, expected: Undisturbed, moments: random.Random) -> Counts:
    """One run, and what came of it."""
    log = out.with_suffix(".log")
    crew = Crew(work=lambda: work(out), log=log, random=moments)
    counts = Counts()
    num_workers = moments.randint(1, MAX_WORKERS)
    for _ in range(num_workers):
        crew.start()
    for _ in range(moments.randint(1, 6)):
        time.sleep(moments.uniform(0, expected.seconds / 4))
        _disturb(crew, counts, moments)
        while not crew.running or (len(crew.running) < num_workers and moments.random() < 0.5):
            crew.start()
    counts.failed_workers += crew.finish()
    counts.takeovers = log.read_text().count("Took over")
    _compare(out, expected.folder, counts)
    return counts


def _disturb(crew: Crew, counts: Counts, moments: random.Random) -> None:
    """One blow: a worker killed, all of them, or one stopped."""
    blow = moments.random()
    if blow < 0.55:
        crew.kill([moments.choice(crew.running)], counts)
    elif blow < 0.8:
        crew.kill(crew.running + crew.stopped, counts)
    else:
        crew.stop(moments.choice(crew.running))
        counts.stops += 1


def _forked(work: Callable[[], object], log: Path | None, *, machine: str | None = None) -> int:
    """The process id of a child that does `work`, prints into `log` and ends with 0 if it went
    well. `machine`: where it believes itself to be."""
    pid = os.fork()
    if pid:
        return pid
    try:
        with open(log or os.devnull, "a", encoding="utf-8") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        if machine is not None:
            heartbeat.this_machine = lambda: machine
        work()
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        os._exit(1)


def _wait_for_all(pids: list[int]) -> int:
    """How many of the processes did not end with 0."""
    return sum(os.waitpid(pid, 0)[1] != 0 for pid in pids)


def _compare(out: Path, undisturbed: Path, counts: Counts) -> None:
    """Count where `out` is not as the undisturbed folder."""
    names, expected = _files(out), _files(undisturbed)
    counts.left_files = len(names - expected)
    counts.missing_files = len(expected - names)
    counts.differing_files = sum(
        (out / name).read_bytes() != (undisturbed / name).read_bytes() for name in names & expected
    )
    counts.differing_sample_sets = int(_members(out) != _members(undisturbed))
    if counts.is_clean:
        _remove(out)


def _files(folder: Path) -> set[str]:
    """Everything in a folder, hidden things and folders too, but for the files of workers in the
    folder of the claims, and that folder with them: those of other machines stay, as they may be
    alive."""
    paths = [path for path in folder.rglob("*") if not path.name.startswith(heartbeat.PREFIX)]
    kept = [path for path in paths if path.name == FOLDER and any(path.iterdir())]
    return {str(path.relative_to(folder)) for path in paths if path not in kept}


def _members(folder: Path) -> list[str]:
    """The names of all members of all tars."""
    names = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            names += tar.getnames()
    return names


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


if __name__ == "__main__":
    sys.exit(main())
