"""Ranks started by DeepSpeed's own launcher: here, or over ssh on the hosts of a hostfile.

Over ssh, DeepSpeed hands its command line to a shell on every host and passes on few variables of
the environment. So one word holds all that a rank needs: ``launch.encoded_rank`` decodes it.
https://www.deepspeed.ai/getting-started/#launching-deepspeed-training
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from launch.config import DEFAULT_PORT, LaunchConfig
from launch.encoded_rank import encode
from launch.environment import check_port, free_port, interface_variables
from launch.job import Job, UserError
from launch.logs import LOG_FOLDER_VARIABLE
from launch.processes.process import missing_command, prepare_logs
from launch.processes.supervisor import RestartPolicy, Supervisor

_CONNECT_SECONDS = 10
FREE_PORT = 0
"""Stands in a ``--dry-run`` for a port that is free when the job starts."""


_PORT_SECONDS = 5.0


def command(job: Job, config: LaunchConfig, port: int | None = None) -> list[str]:
    """``python -m deepspeed.launcher...  --module MODULE ARGS...``."""
    port = config.master_port or port or (FREE_PORT if config.nodes == 1 else DEFAULT_PORT)
    return [
        sys.executable,
        "-m",
        *(_here(config) if config.nodes == 1 else _over_ssh(config)),
        f"--master_port={port}",
        "--no_local_rank",  # ranks find it in their environment
        "--module",
        *_rank(job, config),
    ]


def _rank(job: Job, config: LaunchConfig) -> list[str]:
    if config.nodes == 1:
        return [job.module, *job.args]
    env = job.env | {LOG_FOLDER_VARIABLE: str(job.log_folder.resolve())}
    return ["launch.encoded_rank", encode(job.module, job.args, env)]


def _here(config: LaunchConfig) -> list[str]:
    """The node's own part of DeepSpeed's launcher. ``deepspeed.launcher.runner``, which would start
    it, passes no signal on to it on a single node: ranks could not save before they end."""
    slots = {"localhost": list(range(config.procs_per_node))}
    world = base64.urlsafe_b64encode(json.dumps(slots).encode()).decode()
    options = [f"--world_info={world}", "--master_addr=127.0.0.1", "--quiet"]
    return ["deepspeed.launcher.launch", *options]


def _over_ssh(config: LaunchConfig) -> list[str]:
    options = [
        "deepspeed.launcher.runner",
        f"--hostfile={config.hostfile}",
        f"--num_nodes={config.nodes}",
        f"--num_gpus={config.procs_per_node}",  # accelerators of any kind, CPU ranks too
        "--quiet",
    ]
    if config.master_address is not None:
        options.append(f"--master_addr={config.master_address}")
    return options


def run(job: Job, config: LaunchConfig) -> None:
    """Run all nodes' ranks to the end; see launch.job."""
    if config.nodes > 1:
        check_hosts(config)
    elif config.master_port:
        check_port(config.master_port, wait_seconds=_PORT_SECONDS)
    prepare_logs(job)
    if config.nodes == 1:
        job = replace(job, env=interface_variables("127.0.0.1") | job.env)
    policy = RestartPolicy(
        max_restarts=config.restarts if job.can_restart else 0, hang_seconds=config.hang_seconds
    )
    Supervisor(job, policy).run(
        lambda: command(job, config, free_port() if config.nodes == 1 else None)
    )


def check_hosts(config: LaunchConfig) -> None:
    """UserError unless the hostfile has enough hosts with enough slots, and what reaches them is
    installed."""
    for needed in ("pdsh", "ssh"):
        if shutil.which(needed) is None:
            raise missing_command(needed)
    hosts = read_hostfile(Path(str(config.hostfile)))
    if len(hosts) < config.nodes:
        raise UserError(
            f"{config.hostfile} has {len(hosts)} hosts; expected at least launch.nodes, "
            f"{config.nodes}."
        )
    for host, slots in hosts.items():
        if slots < config.procs_per_node:
            raise UserError(
                f"{config.hostfile} gives {host} {slots} slots; expected at least "
                f"launch.procs_per_node, {config.procs_per_node}."
            )
    _check_answers(list(hosts)[: config.nodes])
    unsafe = [text for text in (sys.executable, str(Path.cwd())) if re.search(r"[^\w./@+-]", text)]
    if unsafe:
        raise UserError(
            f"DeepSpeed passes {unsafe[0]!r} to a shell on every host without quotes; expected a "
            "path of letters, digits and ./@+-_ only: move the checkout, or use torchrun or slurm."
        )


def _check_answers(hosts: list[str]) -> None:
    """UserError with the hosts that a command cannot be run on over ssh, and ssh's message.

    DeepSpeed's launcher would wait for them silently."""
    command = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_SECONDS}"]
    started = {
        host: subprocess.Popen([*command, host, "true"], stderr=subprocess.PIPE, text=True)
        for host in hosts
    }
    silent = []
    for host, process in started.items():
        try:
            words = process.communicate(timeout=3 * _CONNECT_SECONDS)[1].strip()
        except subprocess.TimeoutExpired:
            process.kill()
            words = process.communicate()[1].strip() or "no answer"
        if process.returncode != 0:
            silent.append(f"{host}: {words or f'exit status {process.returncode}'}")
    if silent:
        raise UserError(
            "expected every host of launch.hostfile to run commands over ssh without a password; "
            "got:\n  " + "\n  ".join(silent)
        )


def read_hostfile(path: Path) -> dict[str, int]:
    """{host: slots} of ``HOST slots=N`` lines; ``#`` begins a comment. UserError on any other."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"launch.hostfile: cannot read {path}: {error}") from error
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        found = re.fullmatch(r"([\w.@:-]+)\s+slots=(\d+)", text)
        if found is None or found[1].startswith("-") or found[1] in hosts:
            raise UserError(f"{path}, line {number}: got {line!r}; expected `HOST slots=N`, once.")
        hosts[found[1]] = int(found[2])
    return hosts
