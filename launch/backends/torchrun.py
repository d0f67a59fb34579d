"""Ranks started by torchrun: several on this machine, or this machine's share of several nodes.

One node meets on 127.0.0.1 at a free port, so that several runs fit on a machine and no host name
has to resolve. Several nodes meet at the first one's address: the same command is started on each
of them, with ``launch.node_rank`` saying which one it is (``slurm`` does that by itself).
https://pytorch.org/docs/stable/elastic/run.html
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace

from launch.config import DEFAULT_PORT, LaunchConfig
from launch.environment import (
    PRELOAD_VARIABLE,
    address_towards,
    check_port,
    interface_variables,
)
from launch.job import Job, LaunchError
from launch.logs import tail
from launch.processes.peers import Peers
from launch.processes.process import prepare_logs, state_of
from launch.processes.supervisor import RestartPolicy, Supervisor

LAST_CALL_SECONDS = 10
"""Once the least number of nodes has come, others have so long."""
ENVIRONMENT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Without it, ranks that were started again may read addresses of their predecessors."""
SHUTDOWN_SECONDS = 300
"""How long ranks that got a signal have for their checkpoint (torchrun's own: 30)."""
_PORT_SECONDS = 5.0
MAX_RESTARTS = 1_000_000
"""torchrun's own limit, where the supervisor decides."""


def command(job: Job, config: LaunchConfig) -> list[str]:
    """``python -m torch.distributed.run ... -m MODULE ARGS...``."""
    if config.nodes == 1:
        rendezvous = ["--standalone", "--nnodes=1", "--local-addr=127.0.0.1"]
    else:
        address, port = config.master_address, config.master_port or DEFAULT_PORT
        rendezvous = [
            *several_nodes(job, config, is_host=str(int(config.node_rank == 0))),
            f"--rdzv-endpoint={address}:{port}",
            f"--rdzv-id={job.title}",
            f"--local-addr={address_towards(str(address))}",
        ]
    return [sys.executable, *worker_options(job, config, rendezvous)]


def several_nodes(job: Job, config: LaunchConfig, *, is_host: str) -> list[str]:
    """Options by which several nodes meet, but for where."""
    seconds = job.join_seconds
    few = config.min_nodes or config.nodes
    nodes = f"{few}:{config.nodes}" if few < config.nodes else str(config.nodes)
    return [
        f"--nnodes={nodes}",
        "--rdzv-backend=c10d",
        f"--rdzv-conf=join_timeout={seconds},last_call_timeout={LAST_CALL_SECONDS},"
        f"timeout={seconds},is_host={is_host}",
    ]


def worker_options(job: Job, config: LaunchConfig, rendezvous: list[str]) -> list[str]:
    """What follows ``python``."""
    can_restart = job.can_restart and config.restarts > 0
    restarts = MAX_RESTARTS if can_restart else 0
    return [
        "-m",
        "launch.preloading.torchrun" if can_restart else "torch.distributed.run",
        *rendezvous,
        f"--nproc-per-node={config.procs_per_node}",
        f"--max-restarts={restarts}",
        "--monitor-interval=0.5",
        f"--shutdown-timeout={SHUTDOWN_SECONDS}",
        "-m",
        job.module,
        *job.args,
    ]


def environment(job: Job, config: LaunchConfig) -> dict[str, str]:
    """Variables of the ranks, the job's own included."""
    is_one = config.nodes == 1
    address = "127.0.0.1" if is_one else address_towards(str(config.master_address))
    return ENVIRONMENT | interface_variables(address) | preload_variables(job) | job.env


def preload_variables(job: Job) -> dict[str, str]:
    """What ``launch.preloading.torchrun`` is to import."""
    return {PRELOAD_VARIABLE: " ".join(job.preload)} if job.preload else {}


def run(job: Job, config: LaunchConfig) -> None:
    """Run this node's ranks to the end; see launch.job."""
    if config.nodes > 1 and config.node_rank == 0:
        check_port(config.master_port or DEFAULT_PORT, wait_seconds=_PORT_SECONDS)
    prepare_logs(job)
    peers = None
    if config.nodes > 1 and job.can_restart and config.restarts:
        port = (config.master_port or DEFAULT_PORT) + 1
        peers = Peers(str(config.master_address), port, is_first=config.node_rank == 0)
    run_torchrun(replace(job, env=environment(job, config)), config, command(job, config), peers)


def run_torchrun(
    job: Job,
    config: LaunchConfig,
    torchrun: list[str],
    peers: Peers | None,
    *,
    kills_at_second_signal: bool = True,
) -> None:
    """Supervise ``torchrun``; an error names the rank that was killed first, where one was."""
    policy = RestartPolicy(
        max_restarts=config.restarts if job.can_restart else 0,
        hang_seconds=config.hang_seconds,
        kills_at_second_signal=kills_at_second_signal,
    )
    try:
        Supervisor(job, policy, peers).run(lambda: torchrun)
    except LaunchError as error:
        if "RendezvousTimeoutError" in error.tail or "RendezvousConnectionError" in error.tail:
            raise LaunchError(_not_met(job, torchrun), error.log, error.tail) from error
        is_of_torchrun = error.log == job.paths.launcher_log(job.node_rank)
        killed = first_killed(error.tail) if is_of_torchrun else None
        if killed is None or error.is_permanent:
            raise
        rank, exitcode = killed
        log = job.paths.rank_log(rank)
        state = f"{job.title}: rank {rank} {state_of(exitcode)}"
        raise LaunchError(state, log, tail(log)) from error
    finally:
        if peers is not None:
            peers.close()


def _not_met(job: Job, torchrun: list[str]) -> str:
    """That the nodes did not meet, where, and what to look for."""
    options = dict(word.split("=", 1) for word in torchrun if word.startswith("--rdzv-e"))
    where = options.get("--rdzv-endpoint", "the first node")
    return (
        f"{job.title}: the nodes did not meet at {where}: not all came within {job.join_seconds} s, "
        "or the first one cannot be reached. Start the same command on every node, with "
        "launch.node_rank 0, 1, ..., and see that each reaches that address and port (no firewall)"
    )


def first_killed(summary: str) -> tuple[int, int] | None:
    """Rank and exit code of the root cause in torchrun's summary of failures: the rank that had no
    time to record its own."""
    cause = summary.rpartition("Root Cause")[2]
    found = re.search(r"rank +: (\d+) .*?exitcode +: (-?\d+)", cause, re.DOTALL)
    return (int(found[1]), int(found[2])) if found else None
