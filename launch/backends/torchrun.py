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
from launch.environment import address_towards, interface_variables
from launch.job import Job, LaunchError
from launch.logs import tail
from launch.peers import Peers
from launch.process import prepare_logs, state_of
from launch.supervisor import RestartPolicy, Supervisor

RENDEZVOUS_CONF = "join_timeout=1800,last_call_timeout=10,timeout=1800"
"""Nodes are waited for half an hour; once the least number has come, others have ten
seconds."""
ENVIRONMENT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Without it, ranks that were started again may read addresses of their predecessors."""
SHUTDOWN_SECONDS = 300
"""How long ranks that were told to stop have for their checkpoint (torchrun's own: 30)."""
MAX_RESTARTS = 1_000_000
"""torchrun's own limit, where the supervisor decides."""


def command(job: Job, config: LaunchConfig) -> list[str]:
    """``python -m torch.distributed.run ... -m MODULE ARGS...``."""
    if config.nodes == 1:
        rendezvous = ["--standalone", "--nnodes=1", "--local-addr=127.0.0.1"]
    else:
        address, port = config.master_address, config.master_port or DEFAULT_PORT
        rendezvous = [
            *several_nodes(config, is_host=str(int(config.node_rank == 0))),
            f"--rdzv-endpoint={address}:{port}",
            f"--rdzv-id={job.title}",
            f"--local-addr={address_towards(str(address))}",
        ]
    return [sys.executable, *worker_options(job, config, rendezvous)]


def several_nodes(config: LaunchConfig, *, is_host: str) -> list[str]:
    """Options by which several nodes meet, but for where."""
    few = config.min_nodes or config.nodes
    nodes = f"{few}:{config.nodes}" if few < config.nodes else str(config.nodes)
    return [
        f"--nnodes={nodes}",
        "--rdzv-backend=c10d",
        f"--rdzv-conf={RENDEZVOUS_CONF},is_host={is_host}",
    ]


def worker_options(job: Job, config: LaunchConfig, rendezvous: list[str]) -> list[str]:
    """What follows ``python``."""
    restarts = MAX_RESTARTS if job.can_restart and config.restarts else 0
    return [
        "-m",
        "torch.distributed.run",
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
    return ENVIRONMENT | interface_variables(address) | job.env


def run(job: Job, config: LaunchConfig) -> None:
    """Run this node's ranks to the end; see launch.job."""
    prepare_logs(job)
    peers = None
    if config.nodes > 1 and job.can_restart and config.restarts:
        port = (config.master_port or DEFAULT_PORT) + 1
        peers = Peers(str(config.master_address), port, is_first=config.node_rank == 0)
    run_torchrun(replace(job, env=environment(job, config)), config, command(job, config), peers)


def run_torchrun(job: Job, config: LaunchConfig, torchrun: list[str], peers: Peers | None) -> None:
    """Supervise ``torchrun``; an error names the rank that was killed first, where one was."""
    policy = RestartPolicy(
        max_restarts=config.restarts if job.can_restart else 0, hang_seconds=config.hang_seconds
    )
    try:
        Supervisor(job, policy, peers).run(lambda: torchrun)
    except LaunchError as error:
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


def first_killed(summary: str) -> tuple[int, int] | None:
    """Rank and exit code of the root cause in torchrun's summary of failures: the rank that had no
    time to record its own."""
    cause = summary.rpartition("Root Cause")[2]
    found = re.search(r"rank +: (\d+) .*?exitcode +: (-?\d+)", cause, re.DOTALL)
    return (int(found[1]), int(found[2])) if found else None
