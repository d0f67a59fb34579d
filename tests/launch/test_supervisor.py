"""Restarts, hangs and permanent failures on this machine. Oracle: small ranks that fail as they are
told, and the causes and steps that they wrote down themselves."""

from __future__ import annotations

import os
import signal
import socket
import textwrap
import threading
import time
from pathlib import Path

import pytest

from launch.backends import local
from launch.config import LaunchConfig
from launch.events import read_events
from launch.job import Job, LaunchError, NoProgressError, Stopped, UserError
from launch.processes.heartbeat import Beat, read_beats
from launch.processes.marked_processes import marked_processes
from launch.processes.process import prepare_logs, worker_command
from launch.processes.supervisor import RestartPolicy, Supervisor

ROOT = Path(__file__).resolve().parents[2]
RANK_SCRIPT = """
    import os, signal, sys, time
    from pathlib import Path
    from launch.processes.heartbeat import Heartbeat
    from launch.logs import LOG_FOLDER_VARIABLE, open_log, record_failure

    here, action = Path(sys.argv[1]), sys.argv[2]
    logs = Path(os.environ[LOG_FOLDER_VARIABLE])
    open_log(logs, 0)
    heartbeat = Heartbeat(0)
    starts = here / "starts"
    number = len(starts.read_text()) if starts.exists() else 0
    with starts.open("a") as file:
        file.write("x")
    if action != "saves":
        (here / f"pid-{number}").write_text(str(os.getpid()))
    if action == "progress" and number < 3:  # one more step at every start
        heartbeat.beat(number + 1)
        while not (here / f"noted-{number + 1}").exists():
            time.sleep(0.05)
        sys.exit(1)
    if action == "stuck":
        sys.exit(1)
    if action == "permanent":
        record_failure(logs, 0, FloatingPointError("inf"), is_users=False, is_permanent=True)
        sys.exit(1)
    if action == "users":
        record_failure(logs, 0, ValueError("no corpus"), is_users=True)
        sys.exit(2)
    if action == "no room":
        record_failure(Path("/no/such/folder"), 0, ValueError("no room"), is_users=True)
        sys.exit(2)
    if action == "usr1":
        os.kill(os.getpid(), signal.SIGUSR1)
        (here / "survived").touch()
    if action == "saves":
        told = []
        signal.signal(signal.SIGTERM, lambda *_: told.append(1))
        (here / "pid-0").touch()
        while not told:
            time.sleep(0.05)
        (here / "told").touch()
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            time.sleep(0.05)
        (here / "saved").touch()
        sys.exit(143)
    if action == "slow":
        heartbeat.beat(1)
        while not (here / "told").exists():
            time.sleep(0.05)
    if action == "stopped" and number == 0:
        heartbeat.beat(1)
        time.sleep(600)
"""


def make_job(folder: Path, action: str) -> Job:
    (folder / "rank_script.py").write_text(textwrap.dedent(RANK_SCRIPT))
    return Job(
        title="test",
        module="rank_script",
        args=(str(folder), action),
        log_folder=folder / "logs",
        env={"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        can_restart=True,
    )


def num_starts(folder: Path) -> int:
    return len((folder / "starts").read_text())


def test_three_restarts_without_a_new_step_end_the_job(tmp_path: Path) -> None:
    job = make_job(tmp_path, "stuck")
    with pytest.raises(NoProgressError, match="3 restarts in a row without a new step"):
        local.run(job, LaunchConfig(max_restarts=3))
    assert num_starts(tmp_path) == 4
    assert [e["event"] for e in read_events(job.paths.events)].count("restart") == 4


def test_a_start_with_a_new_step_resets_the_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three failures, each after a step that was new: with one restart allowed it still ends well.
    A rank fails only when the supervisor has read its step."""
    job = make_job(tmp_path, "progress")

    def read_and_note(folder: Path) -> list[Beat]:
        beats = read_beats(folder)
        for beat in beats:
            (tmp_path / f"noted-{beat.step}").touch()
        return beats

    monkeypatch.setattr("launch.processes.supervisor.read_beats", read_and_note)
    local.run(job, LaunchConfig(max_restarts=1))
    assert num_starts(tmp_path) == 4
    kinds = [event["event"] for event in read_events(job.paths.events)]
    assert kinds[0] == "start" and kinds[-1] == "end" and kinds.count("recovered") == 2


@pytest.mark.parametrize(
    ("action", "error"),
    [("permanent", LaunchError), ("users", UserError), ("no room", UserError)],
)
def test_what_no_restart_can_help_is_not_started_again(
    action: str, error: type[Exception], tmp_path: Path
) -> None:
    """Also where nothing can be written to the log folder."""
    with pytest.raises(error, match="inf|no corpus|no room"):
        local.run(make_job(tmp_path, action), LaunchConfig(max_restarts=3))
    assert num_starts(tmp_path) == 1


def test_a_stopped_rank_is_named_and_started_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.processes.stalls.STOPPED_SECONDS", 1.0)

    def stop() -> None:
        deadline = time.monotonic() + 300
        while not (tmp_path / "pid-0").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1)
        os.kill(int((tmp_path / "pid-0").read_text()), signal.SIGSTOP)

    thread = threading.Thread(target=stop)
    thread.start()
    local.run(make_job(tmp_path, "stopped"), LaunchConfig(max_restarts=1))
    thread.join()
    assert "rank 0 on" in (said := capfd.readouterr().err) and "is stopped (SIGSTOP)" in said
    assert num_starts(tmp_path) == 2


def test_a_hung_rank_writes_its_stacks_and_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the line of the rank's script at which it sleeps."""
    monkeypatch.setattr("launch.processes.heartbeat.STALL_REPORT_SECONDS", 0.5)
    job, policy = make_job(tmp_path, "stopped"), RestartPolicy(max_restarts=1, hang_seconds=4)
    prepare_logs(job)
    Supervisor(job, policy).run(lambda: worker_command(job))
    assert num_starts(tmp_path) == 2
    log = (tmp_path / "logs/rank-0.log").read_text()
    assert "most recent call first" in log and "rank_script.py" in log


def test_a_slow_rank_is_named_where_nothing_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One node, no restarts: the rank ends well once its stacks are in its log. The line names the
    job, which has the stage in its title, host, rank and step."""
    monkeypatch.setattr("launch.processes.heartbeat.STALL_REPORT_SECONDS", 0.5)
    log = tmp_path / "logs/rank-0.log"

    def go_on() -> None:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            if log.exists() and "most recent call first" in log.read_text():
                break
            time.sleep(0.05)
        (tmp_path / "told").touch()

    thread = threading.Thread(target=go_on)
    thread.start()
    local.run(make_job(tmp_path, "slow"), LaunchConfig())
    thread.join()
    said = capfd.readouterr().err
    assert f" s on {socket.gethostname()}; rank 0 is at step 1" in said and "test: no st" in said
    assert num_starts(tmp_path) == 1


def test_no_process_of_a_start_is_left(tmp_path: Path) -> None:
    """A child in a session of its own, whose parent is gone."""
    (tmp_path / "m.py").write_text(
        "import subprocess; p = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid)); raise SystemExit(1)\n"
    )
    job = Job(
        title="t",
        module="m",
        args=(),
        log_folder=tmp_path / "logs",
        env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    with pytest.raises(LaunchError):
        local.run(job, LaunchConfig())
    pid = int((tmp_path / "pid").read_text())
    stat = Path(f"/proc/{pid}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"
    assert marked_processes("BOXLESS_START", "no-such-start") == []


def test_half_written_heartbeats_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "rank-0").write_text("0 12 3 4.5   ")
    (tmp_path / "rank-1").write_text("1 12")
    (beat,) = read_beats(tmp_path)
    assert (beat.rank, beat.pid, beat.step, beat.since_seconds) == (0, 12, 3, 4.5)


@pytest.mark.parametrize("kills", [True, False])
def test_a_second_signal_ends_ranks_at_once_or_not(kills: bool, tmp_path: Path) -> None:
    """A rank that takes a second to save after its first SIGTERM. A person who presses Ctrl-C twice
    does not wait for it; under a scheduler, which may send more than one, it saves."""

    def send() -> None:
        wait_for(tmp_path / "pid-0")
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(tmp_path / "told")
        os.kill(os.getpid(), signal.SIGTERM)

    job = make_job(tmp_path, "saves")
    job.log_folder.mkdir()
    thread = threading.Thread(target=send)
    thread.start()
    supervisor = Supervisor(job, RestartPolicy(kills_at_second_signal=kills))
    with pytest.raises(Stopped):
        supervisor.run(lambda: local.command(job, LaunchConfig()))
    thread.join()
    assert (tmp_path / "saved").exists() is not kills


def test_ranks_outlive_a_signal_that_is_for_their_supervisor(tmp_path: Path) -> None:
    """``scancel --signal=USR1`` reaches every process of a job; unhandled, it would end them."""
    local.run(make_job(tmp_path, "usr1"), LaunchConfig())
    assert (tmp_path / "survived").exists()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 180
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
