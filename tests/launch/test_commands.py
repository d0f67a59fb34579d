"""What each launcher would run, without running it. Oracle: the options that torchrun's,
DeepSpeed's and Slurm's documentation give for the case."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.backends import deepspeed, local, slurm, torchrun
from launch.config import LaunchConfig
from launch.job import Job

JOB = Job(
    title="toy-pretrain",
    module="pipeline.runner.worker",
    args=("pretrain", "/runs/a b"),
    log_folder=Path("/runs/a b/logs"),
    env={"OMP_NUM_THREADS": "1"},
)
RANK = ["-m", "pipeline.runner.worker", "pretrain", "/runs/a b"]


def test_local() -> None:
    assert local.command(JOB, LaunchConfig()) == [sys.executable, *RANK]


def test_torchrun_on_one_node_meets_on_loopback() -> None:
    """No name has to resolve, and --standalone takes a free port."""
    command = torchrun.command(JOB, LaunchConfig(launcher="torchrun", procs_per_node=4))
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert command[-4:] == RANK
    for option in ("--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=4"):
        assert option in command
    assert not any("rdzv" in part for part in command)


def test_torchrun_on_several_nodes_meets_at_the_first() -> None:
    config = LaunchConfig(
        launcher="torchrun", nodes=3, node_rank=2, master_address="node0", master_port=1234
    )
    command = torchrun.command(JOB, config)
    for option in (
        "--nnodes=3",
        "--node-rank=2",
        "--rdzv-endpoint=node0:1234",
        "--rdzv-backend=c10d",
        "--rdzv-id=toy-pretrain",
    ):
        assert option in command
    assert "--standalone" not in command


def test_deepspeed_here_and_over_a_hostfile() -> None:
    here = deepspeed.command(JOB, LaunchConfig(launcher="deepspeed", procs_per_node=2))
    assert here[2] == "deepspeed.launcher.launch" and "--master_addr=127.0.0.1" in here
    (world,) = (part.split("=", 1)[1] for part in here if part.startswith("--world_info="))
    assert json.loads(base64.urlsafe_b64decode(world)) == {"localhost": [0, 1]}
    assert here[-4:] == ["--module", *RANK[1:]]
    config = LaunchConfig(launcher="deepspeed", nodes=2, procs_per_node=8, hostfile="hosts")
    there = deepspeed.command(JOB, config)
    assert "--hostfile=hosts" in there and "--num_nodes=2" in there and "--num_gpus=8" in there


def test_slurm_script() -> None:
    """One torchrun a node, told to stop before the limit; every path is quoted for bash."""
    config = LaunchConfig(
        launcher="slurm",
        nodes=2,
        procs_per_node=4,
        cpus_per_proc=3,
        gpus_per_node=4,
        partition="long",
        account="vl",
        time_limit_minutes=90,
    )
    script = slurm.script(JOB, config)
    for option in (
        "nodes=2",
        "ntasks-per-node=1",
        "cpus-per-task=12",
        "gpus-per-node=4",
        "partition=long",
        "account=vl",
        "time=90",
        "requeue",
        "signal=B:USR1@120",
    ):
        assert f"#SBATCH --{option}\n" in script
    assert "export OMP_NUM_THREADS=1\n" in script
    assert "--nnodes=2" in script and "--nproc-per-node=4" in script
    assert "-m pipeline.runner.worker pretrain '/runs/a b'" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert slurm.command(JOB, config) == ["sbatch", "--parsable", "/runs/a b/logs/job.sh"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"nodes": 0}, "nodes is 0"),
        ({"procs_per_node": -1}, "procs_per_node is -1"),
        ({"time_limit_minutes": 2}, "time_limit_minutes is 2"),
        ({"gpus_per_node": -1}, "gpus_per_node is -1"),
        ({"master_port": 0}, "master_port is 0"),
        ({"node_rank": 1}, "node_rank is 1; expected 0 to 0"),
        ({"procs_per_node": 2}, "launcher is local with 2 ranks"),
        ({"launcher": "torchrun", "nodes": 2}, "master_address is null with 2 nodes"),
        ({"launcher": "deepspeed", "nodes": 2}, "hostfile is null with 2 nodes"),
    ],
)
def test_what_cannot_be_launched_is_refused(values: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LaunchConfig(**values)


def test_torchruns_summary_tells_who_was_killed() -> None:
    """The text is torchrun 2.13's own, of a run whose second rank was killed."""
    summary = """
Failures:
[1]:
  time      : 2026-11-22_02:05:22
  host      : localhost
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 8174)
-----------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-22_02:05:22
  host      : localhost
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 8175)  (SIGKILL)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 8175
"""
    assert torchrun._first_killed(summary) == (1, -9)
    assert torchrun._first_killed("no such summary") is None
