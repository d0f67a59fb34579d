"""One process on this machine."""

from __future__ import annotations

from dataclasses import replace

from launch.config import LaunchConfig
from launch.environment import free_port, interface_variables
from launch.job import Job
from launch.processes.process import prepare_logs, worker_command
from launch.processes.supervisor import RestartPolicy, Supervisor


def command(job: Job, config: LaunchConfig) -> list[str]:
    """``python -m MODULE ARGS...``."""
    return worker_command(job)


def run(job: Job, config: LaunchConfig) -> None:
    """Run it to the end; see launch.job. Its environment says that it is alone, as torchrun's
    would."""
    prepare_logs(job)
    alone = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    } | interface_variables("127.0.0.1")
    policy = RestartPolicy(
        max_restarts=config.restarts if job.can_restart else 0, hang_seconds=config.hang_seconds
    )
    Supervisor(replace(job, env=alone | job.env), policy).run(lambda: command(job, config))
