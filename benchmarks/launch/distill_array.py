"""Distill as an array of Slurm tasks, some cancelled, requeued and added in the middle: are its
shards those of an undisturbed run, to the byte?

    python -m benchmarks.launch.distill_array [--pictures 1200]

The array has six tasks on three nodes. After its first shard a task is cancelled, a task is killed
with SIGKILL, a task is queued again, and two tasks are added with --join. Held against the object
shards of one worker on this machine are the names and bytes of all files. Exit status 1 on any
difference. The cluster is that of benchmarks.launch.cluster.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.launch.cluster import SCRIPT, Cluster
from pipeline.runner.run_folder import RunFolder

WORKER = r"python[^ ]* -m pipeline.runner.worker distill"
LONGEST_SECONDS = 900
PICTURES_A_SHARD = 8


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cluster", type=Path, default=SCRIPT)
    parser.add_argument("--pictures", type=int, default=1200)
    args = parser.parse_args()
    if not args.cluster.is_file():
        parser.error(f"{args.cluster} does not exist; expected a script for a small cluster")
    folder = Path(tempfile.mkdtemp(prefix="boxless-array-"))
    folder.chmod(0o755)
    undisturbed, array = RunFolder(folder / "undisturbed"), RunFolder(folder / "array")
    cluster = Cluster(args.cluster)
    try:
        subprocess.run(
            [*_command("ingest", undisturbed, args.pictures), "--launcher=local"], check=True
        )
        shutil.copytree(undisturbed.root, array.root)
        subprocess.run(
            [*_command("distill", undisturbed, args.pictures), "--launcher=local"], check=True
        )
        cluster("up", "3")
        if not cluster.wait_until_idle():
            parser.error("the cluster did not start: namespaces may be forbidden here")
        began = time.monotonic()
        num_there = disturb(cluster, array, args.pictures)
        seconds = time.monotonic() - began
    finally:
        cluster.down()
    differing = differences(undisturbed.objects, array.objects)
    print(
        f"disturbed after {num_there} of {-(-args.pictures // PICTURES_A_SHARD)} shards, done after "
        f"{seconds:.0f} s: {len(differing)} files differ {differing[:5]}"
    )
    if not differing:
        shutil.rmtree(folder)
    return int(bool(differing))


def disturb(cluster: Cluster, run: RunFolder, num_pictures: int) -> int:
    """Run the array to its end, with everything that may happen to it; how many shards were there
    at that moment. RuntimeError when it does not end well."""
    command = _command("distill", run, num_pictures)
    options = ["--launcher=slurm", "--nodes=3", "--procs-per-node=2"]
    screen = run.root.parent / "screen.log"
    first = cluster.start("ctl", *command, *options, log=screen)
    deadline = time.monotonic() + LONGEST_SECONDS
    while not list(run.objects.glob("*.tar.json")):
        if first.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"no shard was made:\n{screen.read_text()}")
        time.sleep(0.1)
    job_id = json.loads((run.logs("distill") / "job.json").read_text())["job_id"]
    num_there = len(list(run.objects.glob("*.tar.json")))
    cluster("ctl", "scancel", f"{job_id}_1")
    cluster("ctl", "scontrol", "requeue", f"{job_id}_2")
    cluster.signal("n3", WORKER, "KILL")
    joined_log = run.root.parent / "joined.log"
    more = ["--launcher=slurm", "--procs-per-node=2", "--join"]
    joined = cluster.start("ctl", *command, *more, log=joined_log)
    for process, log in ((first, screen), (joined, joined_log)):
        if process.wait(LONGEST_SECONDS) != 0:
            raise RuntimeError(f"a command ended with {process.returncode}:\n{log.read_text()}")
    return num_there


def differences(undisturbed: Path, other: Path) -> list[str]:
    """Files that are only in one of two folders of shards, or differ; records of the run itself
    (how long it took) are left out."""
    names = {
        str(path.relative_to(folder))
        for folder in (undisturbed, other)
        for path in folder.rglob("*")
        if path.is_file() and path.name != "stage.json"
    }

    def content(path: Path) -> bytes | None:
        return path.read_bytes() if path.exists() else None

    return sorted(name for name in names if content(undisturbed / name) != content(other / name))


def _command(stage: str, run: RunFolder, num_pictures: int) -> list[str]:
    settings = {
        "ingest.num_train": num_pictures,
        "ingest.num_heldout": PICTURES_A_SHARD,
        "ingest.samples_per_shard": PICTURES_A_SHARD,
        "distill.teacher": "truth",
        "distill.phrases": "lexicon",
    }
    words = [sys.executable, "-m", "pipeline.cli.main", stage, "toy-tiny", "--run", str(run.root)]
    return words + [
        part for name, value in settings.items() for part in ("--set", f"{name}={value}")
    ]


if __name__ == "__main__":
    sys.exit(main())
