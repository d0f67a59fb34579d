"""Real pretraining on three nodes in namespaces, with faults: is every sample trained on once, and
are the losses those of an undisturbed run?

    python -m benchmarks.launch.multinode_training [--only NAME ...] [--steps 60]

Each way of starting and each fault has a run of its own from the same toy shards, and is compared
with a run of as many ranks on one node that nothing happens to. Printed are the seconds from the
fault to the next step with what they are made of, the samples lost and repeated in whole epochs,
and the largest relative difference of a step's loss. Exit status 1 unless all samples count once
and losses are within 2e-7. The cluster is that of benchmarks.launch.cluster.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.launch.cluster import SCRIPT, Cluster
from benchmarks.launch.goodput import FAULTS
from benchmarks.launch.multinode_run import LONGEST_SECONDS, Recovery, Training
from benchmarks.launch.recorded_pretraining import count_samples, read_turns
from pipeline.recipe.recipe import dump_recipe, load_recipe
from pipeline.runner.launch_plan import LaunchOverrides
from pipeline.runner.run_folder import RunFolder
from pipeline.runner.run_stages import run_stages
from stages.training.monitoring.metrics import read_metrics

NUM_PICTURES, MICRO_BATCH, PER_STEP = 88, 4, 6
FAULT_STEP = 5
TOLERANCE = 2e-7
STUDENT = {
    "stem_width": 8, "widths": "[8, 16]", "depths": "[1, 1]", "hidden_size": 32, "num_layers": 1,
    "num_heads": 2, "ffn_size": 32, "vocab_size": 150, "max_tokens": 24, "shorter_px": 32,
    "longer_px": 64,
}  # fmt: skip
PREEMPTION = """
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""
SLURM: dict[str, Any] = {"launcher": "slurm", "nodes": 2, "time_limit_minutes": 60}
_SMALL_DISK_BYTES = 96 << 20


def undisturbed(training: Training, ranks: int) -> None:
    """So many ranks of one node."""
    training.start(("node", "n1"), launcher="torchrun", procs_per_node=ranks)
    if training.wait() != [0]:
        raise RuntimeError(f"the undisturbed run failed:\n{training.screens}")


def torchrun_by_hand(training: Training) -> list[Recovery]:
    """The same command on two nodes."""
    for rank in (0, 1):
        where = ("node", f"n{rank + 1}")
        config = {"launcher": "torchrun", "nodes": 2, "node_rank": rank, "master_address": "n1"}
        training.start(where, **config)
    training.wait()
    return []


def deepspeed_over_ssh(training: Training) -> list[Recovery]:
    """DeepSpeed's launcher with a hostfile."""
    hosts = training.cluster.start_sshd(training.root, ("n1", "n2"))
    training.start(("node", "n1"), launcher="deepspeed", nodes=2, hostfile=str(hosts))
    training.wait()
    return []


def three_two_three_torchrun(training: Training) -> list[Recovery]:
    """Of three nodes one loses power; it comes back, and joins the two that went on."""

    def start(rank: int) -> None:
        config = {"launcher": "torchrun", "nodes": 3, "min_nodes": 2, "master_address": "n1"}
        training.start(("node", f"n{rank + 1}"), **config, node_rank=rank)

    for rank in (0, 1, 2):
        start(rank)
    training.wait_for_step(FAULT_STEP, world=3)
    began = time.time()
    training.cluster("kill", "n3")
    lost = training.recovery(began, world=2)
    training.processes.pop()
    training.cluster("start", "n3")
    began = time.time()
    start(2)
    back = training.recovery(began, world=3)
    training.wait()
    return [lost, back]


def three_two_three_slurm(training: Training) -> list[Recovery]:
    """The same in a job of at least two nodes, which is queued again once the node is back."""
    training.start(("ctl",), **SLURM | {"nodes": 3, "min_nodes": 2})
    training.wait_for_step(FAULT_STEP, world=3)
    began = time.time()
    training.cluster("kill", "n3")
    lost = training.recovery(began, world=2)
    training.cluster("start", "n3")
    while "n3" not in training.cluster("ctl", "sinfo", "-h", "-t", "idle", "-N", "-o", "%N"):
        time.sleep(0.5)
    began = time.time()
    _scancel("USR1")(training)
    back = training.recovery(began, world=3)
    training.wait()
    return [lost, back]


def slurm_job(fault: Callable[[Training], object], **launch: Any) -> Arm:
    """A job of two nodes, which continues by itself."""

    def run(training: Training) -> list[Recovery]:
        training.start(("ctl",), **SLURM | launch)
        training.wait_for_step(FAULT_STEP)
        began = time.time()
        fault(training)
        recovery = training.recovery(began)
        training.wait()
        return [recovery]

    return run


def slurm_waits(fault: Callable[[Training], object]) -> Arm:
    """A job that waits until what the fault took away is back: nothing need start again."""

    def run(training: Training) -> list[Recovery]:
        training.start(("ctl",), **SLURM)
        training.wait_for_step(FAULT_STEP)
        began = time.time()
        fault(training)
        # Steps after the fault may still be on their way: the second one is none of those.
        recovery = Recovery(step=training.wait_for_step(training.step + 1) - began)
        training.wait()
        return [recovery]

    return run


def slurm_again(fault: Callable[[Training], object], repair: Callable[[Training], object]) -> Arm:
    """A job that the fault ends, and the same command once more; seconds from that command on."""

    def run(training: Training) -> list[Recovery]:
        training.start(("ctl",), **SLURM)
        training.wait_for_step(FAULT_STEP)
        fault(training)
        status = training.processes[0].wait(LONGEST_SECONDS)
        print(f"    ended with {status}: {_failure(training)}", flush=True)
        repair(training)
        began = time.time()
        training.start(("ctl",), **SLURM)
        recovery = training.recovery(began)
        training.wait()
        return [recovery]

    return run


def _on_second_node(name: str) -> Callable[[Training], object]:
    return lambda training: FAULTS[name](training.cluster, "n2")


def _failure(training: Training) -> str:
    lines = (training.root / "screen-0.log").read_text().strip().splitlines()
    errors = [line for line in lines if "Error" in line or "failed" in line]
    return (errors or lines)[-1][:200]


def _preempt(training: Training) -> None:
    urgent = ["sbatch", "-p", "urgent", "-N3", "--exclusive", "-o", "/dev/null", "--wrap=sleep 5"]
    training.cluster("ctl", *urgent)


def _scancel(name: str) -> Callable[[Training], object]:
    def send(training: Training) -> None:
        training.cluster("ctl", "scancel", f"--signal={name}", training.job_id())

    return send


def _fill(training: Training) -> None:
    """Every byte of the run's file system, which is a small one of its own."""
    with (training.root / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            return


def _requeue(training: Training) -> None:
    training.cluster("ctl", "scontrol", "requeue", training.job_id())


Arm = Callable[[Training], list[Recovery]]
ARMS: dict[str, tuple[int, Arm]] = {
    "torchrun by hand on 2 nodes": (2, torchrun_by_hand),
    "deepspeed over ssh on 2 nodes": (2, deepspeed_over_ssh),
    "rank killed": (2, slurm_job(_on_second_node("rank killed"))),
    "torchrun killed": (2, slurm_job(_on_second_node("torchrun killed"))),
    "agent killed": (2, slurm_job(_on_second_node("agent killed"))),
    "rank stopped": (2, slurm_job(_on_second_node("rank stopped"))),
    "link cut for 8 s": (2, slurm_waits(_on_second_node("link cut for 8 s"))),
    "link cut for good": (2, slurm_job(_on_second_node("link cut for good"))),
    "node without power": (2, slurm_job(_on_second_node("node without power"))),
    "preempted": (2, slurm_job(_preempt)),
    "scontrol requeue": (2, slurm_job(_requeue)),
    "scancel --signal=USR1": (2, slurm_job(_scancel("USR1"))),
    "scancel --signal=TERM": (2, slurm_again(_scancel("TERM"), lambda training: None)),
    "time limit": (
        2,
        slurm_job(lambda t: None, time_limit_minutes=2, checkpoint_seconds_before_limit=45),
    ),
    "disk full": (2, slurm_again(_fill, lambda t: (t.root / "filler").unlink())),
    "3 -> 2 -> 3 nodes, torchrun": (3, three_two_three_torchrun),
    "3 -> 2 -> 3 nodes, slurm": (3, three_two_three_slurm),
}
"""Name -> ranks of the undisturbed run that it is compared with, and what is done."""


def make_template(root: Path, num_steps: int) -> None:
    """A run folder with toy shards of a perfect teacher, and the recipe of all runs."""
    values = [
        f"ingest.num_train={NUM_PICTURES}",
        "distill.teacher=truth",
        "distill.phrases=lexicon",
        f"pretrain.num_steps={num_steps}",
        f"pretrain.micro_batch_size={MICRO_BATCH}",
        f"pretrain.micro_batches_per_step={PER_STEP}",
        "pretrain.checkpoint_steps=2",
        "pretrain.log_steps=1",
        *(f"student.{name}={value}" for name, value in STUDENT.items()),
    ]
    recipe, overrides = load_recipe("toy-tiny", values), LaunchOverrides(launcher="local")
    run_stages(recipe, RunFolder(root), ["ingest", "distill"], overrides, dry_run=False)
    (root / "recipe.yaml").write_text(dump_recipe(recipe))


def compare(mine: Path, theirs: Path) -> float:
    """The largest relative difference of a step's loss; infinity where steps are missing."""
    a, b = (read_metrics(RunFolder(r).pretrain / "metrics.jsonl") for r in (mine, theirs))
    if [line["step"] for line in a] != [line["step"] for line in b]:
        return float("inf")
    return max(abs(x["loss"] / y["loss"] - 1) for x, y in zip(a, b))


def run_arms(
    cluster: Cluster, folder: Path, small_disk: Path, names: list[str], num_steps: int
) -> int:
    """Run and print them; how many were wrong."""
    num_wrong = 0
    for ranks in sorted({ARMS[name][0] for name in names}):
        undisturbed(_training(cluster, folder, folder / f"undisturbed-{ranks}"), ranks)
    for name in names:
        ranks, arm = ARMS[name]
        root = (small_disk if name == "disk full" else folder) / f"arm-{list(ARMS).index(name)}"
        training = _training(cluster, folder, root)
        try:
            recoveries = arm(training)
            counts = count_samples(
                read_turns(root),
                num_positions=num_steps * PER_STEP,
                num_an_epoch=-(-NUM_PICTURES // MICRO_BATCH),
                per_step=PER_STEP,
            )
            difference = compare(root, folder / f"undisturbed-{ranks}")
        except (RuntimeError, subprocess.TimeoutExpired, OSError) as error:
            print(f"{name}: failed: {error}", flush=True)
            num_wrong += 1
        else:
            wrong = [counts[key] for key in ("lost", "repeated", "missing", "doubled")]
            num_wrong += any(wrong) or not difference <= TOLERANCE
            print(f"{name}: {counts}, losses within {difference:.1e}", flush=True)
            for recovery in recoveries:
                print(f"    {recovery}", flush=True)
            for _, cause in training.restarts():
                print(f"    restart: {cause[:120]}", flush=True)
        training.clean_up()
    return num_wrong


def _training(cluster: Cluster, folder: Path, root: Path) -> Training:
    shutil.copytree(folder / "template", root)
    return Training(cluster, root)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cluster", type=Path, default=SCRIPT)
    parser.add_argument("--only", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    if not args.cluster.is_file():
        parser.error(f"{args.cluster} does not exist; expected a script for a small cluster")
    folder = Path(tempfile.mkdtemp(prefix="boxless-multinode-"))
    folder.chmod(0o755)
    small_disk = folder / "small-disk"
    small_disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_SMALL_DISK_BYTES}", "tmpfs", str(small_disk)]
    subprocess.run(mount, check=True)  # before the nodes: they see the mounts of their beginning
    cluster = Cluster(args.cluster, PREEMPTION)
    try:
        make_template(folder / "template", args.steps)
        cluster("up", "3")
        if not cluster.wait_until_idle():
            parser.error("the cluster did not start: namespaces may be forbidden here")
        num_wrong = run_arms(cluster, folder, small_disk, args.only, args.steps)
    finally:
        cluster.down()
        subprocess.run(["umount", "--lazy", str(small_disk)], check=False)
    if num_wrong == 0:
        shutil.rmtree(folder)
    else:
        print(f"{num_wrong} of {len(args.only)} were wrong; what is left: {folder}")
    return int(num_wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
