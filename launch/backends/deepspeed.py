"""Ranks started by DeepSpeed's own launcher: here, or over ssh on the hosts of a hostfile.

https://www.deepspeed.ai/getting-started/#launching-deepspeed-training
"""

from __future__ import annotations

import base64
import json
import sys

from launch.config import LaunchConfig
from launch.job import Job
from launch.process import run_process


def command(job: Job, config: LaunchConfig) -> list[str]:
    """``python -m deepspeed.launcher...  --module MODULE ARGS...``."""
    return [
        sys.executable,
        "-m",
        *(_here(config) if config.nodes == 1 else _over_ssh(config)),
        f"--master_port={config.master_port}",
        "--no_local_rank",  # ranks find it in their environment
        "--quiet",
        "--module",
        job.module,
        *job.args,
    ]


def _here(config: LaunchConfig) -> list[str]:
    """The node's own part of DeepSpeed's launcher. ``deepspeed.launcher.runner``, which would start
    it, passes no signal on to it on a single node: ranks could not save when told to stop."""
    slots = {"localhost": list(range(config.procs_per_node))}
    world = base64.urlsafe_b64encode(json.dumps(slots).encode()).decode()
    return ["deepspeed.launcher.launch", f"--world_info={world}", "--master_addr=127.0.0.1"]


def _over_ssh(config: LaunchConfig) -> list[str]:
    options = [
        "deepspeed.launcher.runner",
        f"--hostfile={config.hostfile}",
        f"--num_nodes={config.nodes}",
        f"--num_gpus={config.procs_per_node}",  # accelerators of any kind, CPU ranks too
    ]
    if config.master_address is not None:
        options.append(f"--master_addr={config.master_address}")
    return options


def run(job: Job, config: LaunchConfig) -> None:
    """Run all nodes' ranks to the end; see launch.job."""
    run_process(command(job, config), job)
