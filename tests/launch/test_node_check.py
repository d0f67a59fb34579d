"""What is found before a job starts: ports that are taken, hosts that do not answer, nodes that see
different things. Oracle: each fault is made on purpose, and has to be named with its host."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from launch.backends import deepspeed, torchrun
from launch.config import LaunchConfig
from launch.job import Job, LaunchError, UserError
from launch.node_check import findings
from pipeline.cli.main import main


def fact(host: str, **changes: Any) -> dict[str, Any]:
    """What a rank on ``host`` saw, all well but for ``changes``."""
    same = {"code": "c", "recipe": "r", "torch": "2", "sees_mark": True, "time_seconds": 100.0}
    same |= {"gpu": "A100", "gpu_fault": ""}
    return same | {"host": host, "free_bytes": 1 << 40} | changes


def test_nothing_is_found_where_all_is_well() -> None:
    assert findings([fact("a"), fact("b")], num_ranks=2) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"code": "d"}, "code differs: c on a; d on b"),
        ({"recipe": "s"}, "recipe differs: r on a; s on b. Fix: start all nodes with the same"),
        ({"torch": "3"}, "torch differs: 2 on a; 3 on b"),
        ({"sees_mark": False}, "b does not see the run folder of rank 0"),
        ({"time_seconds": 160.0}, r"the clock of b is \+60 s off"),
        ({"free_bytes": 1 << 30}, "b has 1.0 GiB free"),
        ({"gpu": "V100"}, "gpu differs: A100 on a; V100 on b. Fix: ask for nodes of one kind"),
        ({"gpu_fault": "GPU 3 multiplies wrongly"}, "b: GPU 3 multiplies wrongly. Fix: exclude"),
    ],
)
def test_each_fault_is_named_with_its_host(changes: dict[str, Any], words: str) -> None:
    (found,) = findings([fact("a"), fact("b", **changes)], num_ranks=2)
    assert re.search(words, found), found


def test_a_sum_that_lacks_ranks_is_named() -> None:
    (found,) = findings([fact("a"), fact("b")], num_ranks=1)
    assert "counts 1; expected 2" in found


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(title="t", module="none", args=(), log_folder=tmp_path / "logs", join_seconds=1)


def test_a_port_that_is_taken_is_named(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchrun, "_PORT_SECONDS", 0.1)
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        config = LaunchConfig(
            launcher="torchrun", nodes=2, master_address="127.0.0.1", master_port=port
        )
        with pytest.raises(UserError, match=f"port {port} of .* cannot be bound .*already in use"):
            torchrun.run(job, config)


def test_a_node_that_does_not_come_is_said(job: Job) -> None:
    """The other of two nodes is never started."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    config = LaunchConfig(
        launcher="torchrun", nodes=2, master_address="127.0.0.1", master_port=port
    )
    with pytest.raises(LaunchError, match=f"did not meet at 127.0.0.1:{port}: not all came within"):
        torchrun.run(job, config)


def test_hosts_that_do_not_answer_are_named_with_the_words_of_ssh(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ssh and pdsh are stand-ins: one host answers, one does not."""
    ssh = 'case "$*" in *here*) exit 0;; esac; echo "connect to host: timed out" >&2; exit 255'
    for name, text in (("ssh", ssh), ("pdsh", "exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    hosts = tmp_path / "hosts"
    hosts.write_text("here slots=1\naway slots=1\n")
    config = LaunchConfig(launcher="deepspeed", nodes=2, hostfile=str(hosts))
    with pytest.raises(UserError, match="got:\n  away: connect to host: timed out$"):
        deepspeed.run(job, config)


def test_a_rank_here_finds_no_fault(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The command itself, with a real rank; nothing is left in the run folder but logs."""
    words = ["doctor", "--launch", "toy-tiny", "--run", str(tmp_path), "--launcher", "local"]
    assert main(words) == 0
    assert "1 ranks on" in capfd.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]
