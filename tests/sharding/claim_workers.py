"""Workers for the tests of sharding.coordination.claims and sharding.coordination.progress: they
share six small shards."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sharding.coordination.claims import Worker
from sharding.coordination.work_queue import FOLDER
from sharding.format.catalog import write_catalog
from sharding.format.schema import Sample
from sharding.writing.shard_writer import write_shard

TARS = {f"train-{number:06d}.tar": 2 for number in range(6)}
SETTINGS = {"rule": "a", "weights": "1"}
ROOT = Path(__file__).resolve().parents[2]


def samples(tar: str) -> list[Sample]:
    info = {"captions": ["a"], "width": 1, "height": 1}
    stem = tar.removesuffix(".tar")
    return [Sample(key=f"{stem}-{i}", image=b"x", extension="png", info=info) for i in range(2)]


def make_worker(out: Path, settings: Mapping[str, str] = SETTINGS, **changes: Any) -> Worker:
    options: dict[str, Any] = {"log": lambda text: None, **changes}
    return Worker(out, TARS, dict.fromkeys(TARS, settings), **options)


def work(
    out: Path,
    settings: Mapping[str, str] = SETTINGS,
    *,
    before_each: Callable[[str], object] = lambda tar: None,
    **changes: Any,
) -> list[str]:
    """One worker from its first look to the catalog; the tars that it wrote."""
    wrote = []
    with make_worker(out, settings, **changes) as worker:
        for claim in worker.claims():
            with claim:
                before_each(claim.tar)
                results = claim.track(samples(claim.tar))
                write_shard(
                    out / claim.tar,
                    results,
                    fingerprint=settings,
                    check_owner=claim.check_owner,
                )
                wrote.append(claim.tar)
        with worker.finalize() as is_last:
            if is_last:
                write_catalog(out, kind="images", splits=dict.fromkeys(TARS, "train"), metadata={})
    return wrote


def tree(folder: Path) -> dict[str, bytes]:
    """Every file with its bytes; fails on a folder other than that of the claims, or if that holds
    anything but the files of workers that died on other machines."""
    left = [path.name for path in (folder / FOLDER).glob("*") if "worker-" not in path.name]
    assert left == []
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != FOLDER}


# A worker that claims the first shard, says so, and waits to be killed.
HOLDER = """
import sys, time
from pathlib import Path
from sharding.coordination import heartbeat
out, machine, lease = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
if machine:
    heartbeat.this_machine = lambda: machine
sys.path[:0] = [sys.argv[4]]
from claim_workers import make_worker
with make_worker(out, lease_seconds=lease) as worker:
    for claim in worker.claims():
        print(claim.tar, flush=True)
        time.sleep(600)
    with worker.finalize():
        print("catalog.json", flush=True)
        time.sleep(600)
"""


def killed_holder(out: Path, machine: str = "", lease_seconds: float = 60.0) -> str:
    """The tar that a process claimed before it was killed with SIGKILL."""
    arguments = [str(out), machine, str(lease_seconds), str(Path(__file__).parent)]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    tar = process.stdout.readline().strip()
    process.kill()
    process.communicate()
    return tar


def killed_holder_of_catalog(out: Path) -> None:
    """A process that was closing a folder, all of whose shards are done, when it was killed."""
    assert killed_holder(out) == "catalog.json"
