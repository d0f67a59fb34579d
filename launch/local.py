"""One process on this machine."""

from __future__ import annotations

from launch.config import LaunchConfig
from launch.job import Job
from launch.process import run_process, worker_command


def command(job: Job, config: LaunchConfig) -> list[str]:
    """``python -m MODULE ARGS...``."""
    return worker_command(job)


def run(job: Job, config: LaunchConfig) -> None:
    """Run it to the end; see launch.job."""
    run_process(command(job, config), job)
