"""Ranks started by torchrun: several on this machine, or this machine's share of several nodes.

One node meets on 127.0.0.1 at a free port, so that several runs fit on a machine and no host name
has to resolve. Several nodes meet at the first one's address: the same command is started on each
of them, with ``launch.node_rank`` saying which one it is (``slurm`` does that by itself).
https://pytorch.org/docs/stable/elastic/run.html
"""

from __future__ import annotations

import sys

from launch.config import LaunchConfig
from launch.job import Job
from launch.process import run_process


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
    run_process(command(job, config), job)
