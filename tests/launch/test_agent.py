"""One node's agent, as srun starts it. Oracle: a stand-in for scancel that writes down its words,
and a stand-in for torchrun that waits."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def start_agent(folder: Path, node: int) -> subprocess.Popen[bytes]:
    """An agent whose torchrun is a shell that waits; returned once that runs."""
    (folder / "scancel").write_text(f'#!/bin/sh\necho "$@" > {folder}/asked\n')
    (folder / "scancel").chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    options = {"title": "t", "logs": folder / "logs", "head": "127.0.0.1", "port": port}
    options |= {"max-restarts": 0, "hang-seconds": 60}
    command = [sys.executable, "-m", "launch.agent"]
    command += [f"--{name}={value}" for name, value in options.items()]
    command += ["--", "sh", "-c", f"touch {folder}/started; while :; do sleep 0.1; done"]
    (folder / "logs").mkdir()
    env = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    env |= {"SLURM_NODEID": str(node), "SLURM_JOB_ID": "7"}
    agent = subprocess.Popen(command, cwd=ROOT, env=env)
    wait_for(folder / "started")
    return agent


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 180
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.05)


@pytest.mark.parametrize("node", [0, 1])
def test_a_signal_to_the_whole_job_goes_to_its_script(node: int, tmp_path: Path) -> None:
    """The first node's agent hands SIGUSR1 on, those of the others do nothing; all go on, and end
    with 143 when they are asked to stop."""
    agent = start_agent(tmp_path, node)
    agent.send_signal(signal.SIGUSR1)
    if node == 0:
        wait_for(tmp_path / "asked")
        assert (tmp_path / "asked").read_text() == "--batch --signal=USR1 7\n"
    assert agent.poll() is None
    agent.terminate()
    assert agent.wait(180) == 143
    assert (tmp_path / "asked").exists() is (node == 0)
