"""One node of a Slurm job: ``python -m launch.agent OPTIONS -- PYTHON TORCHRUN-ARGUMENTS...``.

srun starts one on every node. It needs nothing but the standard library, so that it is there at
once, and supervises the node's torchrun. ``{is_host}`` and ``{address}`` in the command become this
node's own. One agent a node, rather than a task a rank: ranks are restarted without a new step of
Slurm, and the exit status is ours.

Exit status: 0 well; 2 what was asked cannot be done; 93 no progress; 143 stopped; 1 anything else.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from launch.backends.torchrun import ENVIRONMENT, run_torchrun
from launch.config import LaunchConfig
from launch.environment import address_towards, check_port, interface_variables
from launch.job import EXIT_NO_PROGRESS, Job, LaunchError, NoProgressError, Stopped, UserError
from launch.logs import write_stderr
from launch.processes.peers import Peers

_PORT_SECONDS = 60.0
"""Ranks of an agent that was killed may take so long to leave the port."""


def main() -> int:
    """Run this node's ranks to their end."""
    args = _parse()
    node = int(os.environ.get("SLURM_NODEID", 0))
    signal.signal(signal.SIGUSR1, _pass_to_script if node == 0 else signal.SIG_IGN)
    address = address_towards(args.head)
    torchrun = [
        part.replace("{is_host}", str(int(node == 0))).replace("{address}", address)
        for part in args.command
    ]
    job = Job(
        title=args.title,
        module="",
        args=(),
        log_folder=Path(args.logs),
        env=ENVIRONMENT | interface_variables(address),
        node_rank=node,
        can_restart=args.max_restarts > 0,
    )
    # Only what a supervisor reads; the ranks' numbers are torchrun's.
    config = LaunchConfig(
        launcher="slurm", max_restarts=args.max_restarts, hang_seconds=args.hang_seconds
    )
    peers = None
    if node == 0:
        try:
            check_port(args.port, wait_seconds=_PORT_SECONDS)
        except UserError as error:
            return _end(str(error), 2)
    if job.can_restart and int(os.environ.get("SLURM_NNODES", 1)) > 1:
        peers = Peers(args.head, args.port + 1, is_first=node == 0)
    try:
        run_torchrun(job, config, torchrun, peers, kills_at_second_signal=False)
    except Stopped:
        return _end("stopped", 143)
    except UserError as error:
        return _end(str(error), 2)
    except NoProgressError as error:
        return _end(str(error), EXIT_NO_PROGRESS)
    except LaunchError as error:
        return _end(str(error), 1)
    return 0


def _pass_to_script(number: int, frame: FrameType | None) -> None:
    """``scancel --signal=USR1`` without ``--batch`` comes here and not to the batch script, which
    knows what to do: let the ranks save, and queue the job again."""
    with contextlib.suppress(OSError):  # no scancel in the container
        command = ["scancel", "--batch", "--signal=USR1", os.environ.get("SLURM_JOB_ID", "")]
        subprocess.Popen(command)


def _end(cause: str, status: int) -> int:
    write_stderr(f"boxless: {cause}")
    return status


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launch.agent")
    parser.add_argument("--title", required=True)
    parser.add_argument("--logs", required=True)
    parser.add_argument("--head", required=True, help="address of the first node")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-restarts", type=int, required=True)
    parser.add_argument("--hang-seconds", type=int, required=True)
    parser.add_argument("command", nargs="+")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
