"""One process on this machine."""

from __future__ import annotations

import socket
from dataclasses import replace

from launch.config import LaunchConfig
from launch.job import Job
from launch.process import run_process, worker_command


def command(job: Job, config: LaunchConfig) -> list[str]:
    """``python -m MODULE ARGS...``."""
    return worker_command(job)


def run(job: Job, config: LaunchConfig) -> None:
    """Run it to the end; see launch.job. It is told that it is alone, as torchrun would."""
    alone = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    run_process(command(job, config), replace(job, env=alone | job.env))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
