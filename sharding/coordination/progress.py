"""Progress of the workers in a folder of shards, read without changing anything."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from sharding.coordination.heartbeat import BEAT_SECONDS, LivenessMonitor, workers_in
from sharding.coordination.plan import read_plan
from sharding.coordination.work_queue import FOLDER, rewrite_requests
from sharding.format.manifest_summary import ManifestSummary, read_manifest_summary
from sharding.format.schema import ShardError


@dataclass(frozen=True, kw_only=True)
class WorkerProgress:
    """One worker: HOST:PID, the shard it writes (None between two), how far it is in it, for how
    long, its rate in inputs a second, seconds since its last heartbeat, and whether it is alive."""

    name: str
    tar: str | None
    num_done: int
    num_inputs: int
    seconds: float
    rate: float
    silent_seconds: float
    is_alive: bool
    is_certain: bool
    """Whether `is_alive` was seen here: its process, or its counter moving. Else the file's time
    says it."""


@dataclass(frozen=True, kw_only=True)
class WorkProgress:
    """All that can be seen of the work in a folder.

    num_shards, num_inputs: planned in all. num_done, num_input_done, num_failed: shards done, their
    inputs, and those of them that failed. workers: by name.
    """

    num_shards: int
    num_inputs: int
    num_done: int
    num_input_done: int
    num_failed: int
    workers: tuple[WorkerProgress, ...]

    @property
    def alive(self) -> tuple[WorkerProgress, ...]:
        """The workers that are alive."""
        return tuple(worker for worker in self.workers if worker.is_alive)

    @property
    def num_running(self) -> int:
        """Shards that living workers write now."""
        return len({worker.tar for worker in self.alive if worker.tar is not None})

    @property
    def num_under_way(self) -> int:
        """Inputs done in shards that are not done."""
        return sum(worker.num_done for worker in self.alive)

    @property
    def rate(self) -> float:
        """Inputs a second over the last minutes, of all living workers together."""
        return sum(worker.rate for worker in self.alive)

    @property
    def seconds_left(self) -> float | None:
        """At this rate; None where nothing moves."""
        left = self.num_inputs - self.num_input_done - self.num_under_way
        return left / self.rate if self.rate > 0 else None


_SECONDS_BETWEEN_LOOKS = 0.5
# A worker's counter moves within one; another for slow disks.
_WATCH_SECONDS = 2 * BEAT_SECONDS


class ProgressReader:
    """Reads the progress of the folder `out`; each manifest is read once."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._monitor = LivenessMonitor()
        self._known: dict[str, tuple[tuple[int, int], ManifestSummary | None]] = {}

    def read(self) -> WorkProgress | None:
        """What is there now; None where no shards are under way.

        A shard counts as done when the workers' own fingerprint is in its manifest's.
        """
        plan = read_plan(self._out)
        if plan is None:
            return None
        again = rewrite_requests(self._out)
        done = [
            head
            for tar, head in self._summaries().items()
            if tar not in again and plan["fingerprint"].items() <= head.fingerprint.items()
        ]
        return WorkProgress(
            num_shards=plan["num_shards"],
            num_inputs=plan["num_inputs"],
            num_done=len(done),
            num_input_done=sum(head.num_input for head in done),
            num_failed=sum(head.num_failed for head in done),
            workers=self._workers(),
        )

    def watch(self, seconds: float = _WATCH_SECONDS) -> WorkProgress | None:
        """What is there now, workers on other machines watched for as long as it takes to see their
        counters move, `seconds` at most; one that does not move counts as dead.

        Clocks of machines may differ, so that a file's time says nothing of its worker.
        """
        until = time.monotonic() + seconds
        while (found := self.read()) is not None:
            if all(worker.is_certain for worker in found.workers):
                return found
            if time.monotonic() >= until:
                workers = tuple(
                    replace(worker, is_alive=worker.is_alive and worker.is_certain)
                    for worker in found.workers
                )
                return replace(found, workers=workers)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return None

    def _summaries(self) -> dict[str, ManifestSummary]:
        """The heads of all manifests; those that have not changed are known from before."""
        found: dict[str, ManifestSummary] = {}
        with os.scandir(self._out) as entries:
            for entry in entries:
                if not entry.name.endswith(".tar.json") or entry.name.startswith("."):
                    continue
                tar = entry.name.removesuffix(".json")
                status = entry.stat()
                version = (status.st_ino, status.st_mtime_ns)
                if tar not in self._known or self._known[tar][0] != version:
                    self._known[tar] = (version, self._summary(tar))
                head = self._known[tar][1]
                if head is not None:
                    found[tar] = head
        return found

    def _summary(self, tar: str) -> ManifestSummary | None:
        try:
            return read_manifest_summary(self._out / tar)
        except ShardError:
            return None

    def _workers(self) -> tuple[WorkerProgress, ...]:
        workers = []
        for state in workers_in(self._out / FOLDER):
            if state.record is None:
                continue
            record = state.record
            silent = self._monitor.shown_silent_seconds(state)
            is_dead, is_here = self._monitor.is_dead(state), state.is_running
            is_seen = is_here or self._monitor.has_moved(state)
            workers.append(
                WorkerProgress(
                    name=record.name,
                    tar=record.tar,
                    num_done=record.num_done,
                    num_inputs=record.num_inputs,
                    seconds=record.tar_seconds,
                    rate=record.rate,
                    silent_seconds=silent,
                    is_alive=not is_dead and (is_seen or silent <= record.lease_seconds),
                    is_certain=is_dead or is_seen,
                )
            )
        return tuple(sorted(workers, key=lambda worker: worker.name))
