"""Launchers with real processes: ends, failures, signals, logs. Oracle: small rank scripts of the
test's own that end, fail, die or wait as they are told, and write down what they saw."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from launch.backends import deepspeed, local, torchrun
from launch.config import LaunchConfig
from launch.job import Job, LaunchError, Stopped, UserError
from launch.paths import JobPaths
from launch.processes.process import state_of
from launch.processes.supervisor import RestartPolicy, Supervisor

ROOT = Path(__file__).resolve().parents[2]
ONE = LaunchConfig()
TWO = LaunchConfig(launcher="torchrun", procs_per_node=2)

RANK_SCRIPT = """
    import os, signal, sys, time
    from pathlib import Path
    from launch.logs import LOG_FOLDER_VARIABLE, open_log, record_failure
    from launch.processes.marked_processes import end_with_parent

    rank, here = int(os.environ.get("RANK", 0)), Path(sys.argv[1])
    logs = Path(os.environ[LOG_FOLDER_VARIABLE])
    open_log(logs, rank)
    end_with_parent()
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    (here / f"rank-{rank}.txt").write_text(
        f"{os.getpid()} {os.environ['WORLD_SIZE']} {os.environ.get('COLOUR')}"
    )
    print(f"out of rank {rank}")
    print(f"err of rank {rank}", file=sys.stderr)
    action, who = sys.argv[2], int(sys.argv[3])
    if action == "wait":
        while not stopped:
            time.sleep(0.05)
        (here / f"saved-{rank}.txt").write_text("")
        sys.exit(143)
    if rank == who:
        if action == "raise":
            try:
                raise RuntimeError("boom")
            except RuntimeError as error:
                record_failure(logs, rank, error, is_users=False)
            sys.exit(1)
        if action == "fail":
            try:
                raise ValueError("no such corpus")
            except ValueError as error:
                record_failure(logs, rank, error, is_users=True)
            sys.exit(2)
        if action == "die":
            os.kill(os.getpid(), signal.SIGKILL)
    elif action != "end":
        while not stopped:  # as a rank that waits for the failed one in a collective
            time.sleep(0.05)
"""


def make_job(folder: Path, action: str, who: int = 0) -> Job:
    (folder / "rank_script.py").write_text(textwrap.dedent(RANK_SCRIPT))
    return Job(
        title="toy-test",
        module="rank_script",
        args=(str(folder), action, str(who)),
        log_folder=folder / "logs",
        env={"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "COLOUR": "red"},
    )


def test_local_is_one_process(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its stdout is the screen, its stderr the log; the job's environment reaches it."""
    local.run(make_job(tmp_path, "end"), ONE)
    assert (tmp_path / "rank-0.txt").read_text().split()[1:] == ["1", "red"]
    assert "out of rank 0" in capfd.readouterr().out
    log = (tmp_path / "logs/rank-0.log").read_text()
    assert "err of rank 0" in log and "out of rank 0" not in log


def test_torchrun_starts_every_rank(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two ranks that know of each other; only the first is on the screen."""
    torchrun.run(make_job(tmp_path, "end"), TWO)
    for rank in (0, 1):
        assert (tmp_path / f"rank-{rank}.txt").read_text().split()[1:] == ["2", "red"]
    said = capfd.readouterr().out
    assert "out of rank 0" in said and "out of rank 1" not in said
    assert "out of rank 1" in (tmp_path / "logs/rank-1.log").read_text()


def test_torchrun_on_two_nodes(tmp_path: Path) -> None:
    """Both started by hand, here on one machine: four ranks know of each other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    first = LaunchConfig(
        launcher="torchrun",
        nodes=2,
        procs_per_node=2,
        master_address="127.0.0.1",
        master_port=port,
    )
    job = make_job(tmp_path, "end")
    second = threading.Thread(
        target=torchrun.run, args=(replace(job, node_rank=1), replace(first, node_rank=1))
    )
    second.start()
    torchrun.run(job, first)
    second.join()
    for rank in range(4):
        assert (tmp_path / f"rank-{rank}.txt").read_text().split()[1:] == ["4", "red"]
    assert (tmp_path / "logs/launcher-1.log").exists()


@pytest.mark.parametrize("launcher", ["local", "torchrun"])
def test_a_failing_rank_is_named_with_its_traceback(launcher: str, tmp_path: Path) -> None:
    module, config, who = (local, ONE, 0) if launcher == "local" else (torchrun, TWO, 1)
    with pytest.raises(LaunchError) as caught:
        module.run(make_job(tmp_path, "raise", who), config)
    host = socket.gethostname()
    assert caught.value.state == f"toy-test: rank {who} on {host} failed: RuntimeError: boom"
    assert caught.value.tail.strip().endswith("RuntimeError: boom")
    assert caught.value.log == tmp_path / f"logs/rank-{who}.log"
    assert "RuntimeError: boom" in caught.value.log.read_text()


@pytest.mark.parametrize("launcher", ["local", "torchrun"])
def test_a_killed_rank_is_named_with_its_signal(launcher: str, tmp_path: Path) -> None:
    """It has no time for last words: the end of its log stands for them."""
    module, config, who = (local, ONE, 0) if launcher == "local" else (torchrun, TWO, 1)
    with pytest.raises(LaunchError, match="killed by SIGKILL") as caught:
        module.run(make_job(tmp_path, "die", who), config)
    assert f"err of rank {who}" in caught.value.tail


def test_what_a_user_can_fix_is_reported_without_traceback(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^no such corpus$"):
        local.run(make_job(tmp_path, "fail"), ONE)


def test_an_old_failure_is_not_reported_again(tmp_path: Path) -> None:
    """Oracle: the second start dies without a word, so the first one's words would be a lie."""
    for action, state in (("raise", "rank 0 on .* failed"), ("die", "killed by SIGKILL")):
        with pytest.raises(LaunchError, match=state):
            local.run(make_job(tmp_path, action), ONE)


def test_a_module_that_cannot_be_imported_is_reported(tmp_path: Path) -> None:
    job = Job(title="t", module="no_such_module", args=(), log_folder=tmp_path)
    with pytest.raises(LaunchError, match="No module named no_such_module"):
        local.run(job, ONE)


def test_a_missing_command_is_reported(tmp_path: Path) -> None:
    job = Job(title="t", module="m", args=(), log_folder=tmp_path)
    with pytest.raises(UserError, match="no-such-command is not on this machine"):
        Supervisor(job, RestartPolicy()).run(lambda: ["no-such-command"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("launcher", ["local", "torchrun"])
def test_a_signal_is_passed_on_and_waited_for(
    launcher: str, number: signal.Signals, tmp_path: Path
) -> None:
    """Every rank gets to save before the launcher ends; the earlier handlers are back after."""
    module, config = (local, ONE) if launcher == "local" else (torchrun, TWO)
    before = signal.getsignal(number)
    sender = threading.Thread(target=_signal_once_up, args=(tmp_path, config, number))
    sender.start()
    with pytest.raises(Stopped) as caught:
        module.run(make_job(tmp_path, "wait"), config)
    sender.join()
    assert caught.value.signal_number == number
    assert signal.getsignal(number) is before
    for rank in range(config.num_ranks):
        assert (tmp_path / f"saved-{rank}.txt").exists()


def _signal_once_up(folder: Path, config: LaunchConfig, number: signal.Signals) -> None:
    _wait_for_ranks(folder, config)
    os.kill(os.getpid(), number)


def _wait_for_ranks(folder: Path, config: LaunchConfig) -> list[int]:
    """Until every rank is ready for a signal; their process ids."""
    paths = [folder / f"rank-{rank}.txt" for rank in range(config.num_ranks)]
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if all(path.exists() and path.read_text() for path in paths):
            break
        time.sleep(0.02)
    return [int(path.read_text().split()[0]) for path in paths]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of a parent's end")
@pytest.mark.parametrize("launcher", ["local", "torchrun"])
def test_ranks_do_not_outlive_a_killed_parent(launcher: str, tmp_path: Path) -> None:
    """kill -9 of the launching process: the ranks are asked to stop, save, and are gone."""
    job = make_job(tmp_path, "wait")
    config = ONE if launcher == "local" else TWO
    parent = f"""
        from pathlib import Path
        from launch.backends import {launcher}
        from launch.config import LaunchConfig
        from launch.job import Job
        job = Job(title="t", module="rank_script", args={job.args!r},
                  log_folder=Path({str(job.log_folder)!r}), env={job.env!r})
        {launcher}.run(job, LaunchConfig(launcher={launcher!r},
                                         procs_per_node={config.procs_per_node}))
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(parent)], cwd=ROOT)
    pids = _wait_for_ranks(tmp_path, config)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 300
    while any(map(_is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_is_alive, pids))
    assert all((tmp_path / f"saved-{rank}.txt").exists() for rank in range(config.num_ranks))


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # a zombie is only not yet waited for by whoever adopted it


def test_deepspeeds_launcher_starts_every_rank(tmp_path: Path) -> None:
    """The real one, on this machine's CPU; asked to stop, it lets the ranks save."""
    config = LaunchConfig(launcher="deepspeed", procs_per_node=2)
    deepspeed.run(make_job(tmp_path, "end"), config)
    for rank in (0, 1):
        written = tmp_path / f"rank-{rank}.txt"
        assert written.read_text().split()[1:] == ["2", "red"]
        written.unlink()
    arguments = (tmp_path, config, signal.SIGTERM)
    sender = threading.Thread(target=_signal_once_up, args=arguments)
    sender.start()
    with pytest.raises(Stopped):
        deepspeed.run(make_job(tmp_path, "wait"), config)
    sender.join()
    assert all((tmp_path / f"saved-{rank}.txt").exists() for rank in (0, 1))


def test_the_first_failure_is_the_one_that_is_reported(tmp_path: Path) -> None:
    """Later ones are echoes of ranks whose peer hung up; a half-written one is passed over."""
    from launch.logs import read_failures

    for rank, seconds in ((0, 30.0), (1, 10.0), (2, 20.0)):
        words = {"rank": rank, "message": "m", "traceback": "t", "time_seconds": seconds}
        (tmp_path / f"rank-{rank}.failure.json").write_text(json.dumps(words))
    (tmp_path / "rank-3.failure.json").write_text('{"rank": 3')
    assert [failure.rank for failure in read_failures(JobPaths(tmp_path))] == [1, 2, 0]


@pytest.mark.parametrize(
    ("returncode", "words"),
    [
        (3, "ended with exit status 3"),
        (-9, "killed by SIGKILL (out of memory?)"),
        (-11, "killed by SIGSEGV (a crash in a compiled library"),
        (-7, "killed by SIGBUS (a crash in a compiled library"),
        (143, "stopped by a SIGTERM"),
    ],
)
def test_states_in_words(returncode: int, words: str) -> None:
    assert state_of(returncode).startswith(words)
