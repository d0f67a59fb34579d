"""Ranks started by torchrun: several on this machine, or this machine's share of several nodes.

One node meets on 127.0.0.1 at a free port, so that several runs fit on a machine and no host name
has to resolve. Several nodes meet at the first one's address: the same command is started on each
of them, with ``launch.node_rank`` saying which one it is (``slurm`` does that by itself).
https://pytorch.org/docs/stable/elastic/run.html
"""

from __future__ import annotations

import re
import sys

from launch.config import LaunchConfig
from launch.job import Job, LaunchError
from launch.logs import launcher_log_path, log_path, tail
from launch.process import run_process, state_of


def command(job: Job, config: LaunchConfig) -> list[str]:
    """``python -m torch.distributed.run ... -m MODULE ARGS...``."""
    if config.nodes == 1:
        rendezvous = ["--standalone", "--local-addr=127.0.0.1"]
    else:
        rendezvous = [
            f"--nnodes={config.nodes}",
            f"--node-rank={config.node_rank}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={config.master_address}:{config.master_port}",
            f"--rdzv-id={job.title}",
        ]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *rendezvous,
        f"--nproc-per-node={config.procs_per_node}",
        "--max-restarts=0",  # a restart is a resume, and that is the conductor's to start
        "-m",
        job.module,
        *job.args,
    ]


def run(job: Job, config: LaunchConfig) -> None:
    """Run this node's ranks to the end; see launch.job."""
    try:
        run_process(command(job, config), job)
    except LaunchError as error:
        said_by_torchrun = error.log == launcher_log_path(job.log_folder, job.node_rank)
        killed = _first_killed(error.tail) if said_by_torchrun else None
        if killed is None:
            raise
        rank, exitcode = killed
        log = log_path(job.log_folder, rank)
        state = f"{job.title}: rank {rank} {state_of(exitcode)}"
        raise LaunchError(state, log, tail(log)) from error


def _first_killed(said: str) -> tuple[int, int] | None:
    """Rank and exit code of the root cause in torchrun's summary of failures: the rank that had no
    time for last words of its own."""
    cause = said.rpartition("Root Cause")[2]
    found = re.search(r"rank +: (\d+) .*?exitcode +: (-?\d+)", cause, re.DOTALL)
    return (int(found[1]), int(found[2])) if found else None
