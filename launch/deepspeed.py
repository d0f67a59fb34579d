"""Ranks started by DeepSpeed's own launcher: here, or over ssh on the hosts of a hostfile.

https://www.deepspeed.ai/getting-started/#launching-deepspeed-training
"""

from __future__ import annotations

import sys

from launch.config import LaunchConfig
from launch.job import Job
from launch.process import run_process


def command(job: Job, config: LaunchConfig) -> list[str]:
    """``python -m deepspeed.launcher.runner ... --module MODULE ARGS...``."""
    if config.nodes == 1:
        # An empty hostfile keeps DeepSpeed from picking up /job/hostfile, its default.
        where = ["--hostfile=", "--master_addr=127.0.0.1"]
    else:
        where = [f"--hostfile={config.hostfile}", f"--num_nodes={config.nodes}"]
        if config.master_address is not None:
            where.append(f"--master_addr={config.master_address}")
    return [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        *where,
        f"--master_port={config.master_port}",
        f"--num_gpus={config.procs_per_node}",  # accelerators of any kind, CPU ranks too
        "--module",
        job.module,
        *job.args,
    ]


def run(job: Job, config: LaunchConfig) -> None:
    """Run all nodes' ranks to the end; see launch.job."""
    run_process(command(job, config), job)
