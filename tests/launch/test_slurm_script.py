"""What a job's batch script does when its step ends or signals come. Oracle: bash, which runs it
with stand-ins for srun, scancel and scontrol that write down how they were called."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from launch.backends import slurm_script
from launch.config import LaunchConfig
from launch.job import Job

STAND_INS = {
    # Ends as it is told; "wait" until the script has it asked to stop.
    "srun": """
        echo x >> "$HERE/sruns"
        touch "$HERE/runs"
        if [ "$STATUS" = wait ]; then
          while [ ! -e "$HERE/told" ]; do sleep 0.05; done
          sleep 0.5
          exit 143
        fi
        exit "$STATUS"
    """,
    "scancel": 'echo "$@" >> "$HERE/scancels"; touch "$HERE/told"',
    "scontrol": 'echo "$@" >> "$HERE/scontrols"',
}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "logs").mkdir()
    return Job(title="t", module="m", args=(), log_folder=tmp_path / "logs", can_restart=True)


def start(job: Job, status: str, **variables: str) -> subprocess.Popen[bytes]:
    """The script of ``job``, whose step ends with ``status``."""
    here = job.log_folder.parent
    text = slurm_script.script(job, LaunchConfig(launcher="slurm", nodes=2, max_requeues=3))
    (here / "job.sh").write_text(text)
    env = {"PATH": f"{here}{os.pathsep}{os.environ['PATH']}", "HERE": str(here), "STATUS": status}
    env |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"} | variables
    return subprocess.Popen(["bash", str(here / "job.sh")], env=env, stderr=subprocess.DEVNULL)


def calls(job: Job, name: str) -> list[str]:
    path = job.log_folder.parent / name
    return path.read_text().splitlines() if path.exists() else []


def outcome(job: Job) -> str | None:
    path = job.paths.outcome("7")
    return path.read_text().strip() if path.exists() else None


@pytest.mark.parametrize(
    ("status", "num_steps", "end"),
    [
        ("0", 1, "finished"),
        ("1", 1, "failed: exit status 1"),
        ("93", 1, "failed: exit status 93"),
        ("137", 4, "failed: exit status 137"),  # an agent was killed: three more starts
        ("143", 1, None),  # Slurm told the ranks to stop: a start after it continues
    ],
)
def test_how_a_step_ends(status: str, num_steps: int, end: str | None, job: Job) -> None:
    assert start(job, status).wait(120) == int(status)
    assert len(calls(job, "sruns")) == num_steps
    assert outcome(job) == end
    assert not any("requeue" in call for call in calls(job, "scontrols"))


def test_a_job_that_ended_is_not_run_again(job: Job) -> None:
    assert start(job, "1").wait(120) == 1
    assert start(job, "0").wait(120) == 0
    assert len(calls(job, "sruns")) == 1 and outcome(job) == "failed: exit status 1"


def test_a_job_that_slurm_stopped_goes_on(job: Job) -> None:
    """Preempted: SIGTERM reaches the ranks and not the script, and Slurm queues the job again."""
    assert start(job, "143").wait(120) == 143
    assert start(job, "0", SLURM_RESTART_COUNT="1").wait(120) == 0
    assert outcome(job) == "finished"


@pytest.mark.parametrize(
    ("number", "is_requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)]
)
def test_ranks_are_signalled_once_however_often_a_signal_comes(
    number: signal.Signals, is_requeued: bool, job: Job
) -> None:
    """A second SIGTERM to torchrun would cut its ranks' checkpoint short. After USR1 the job is
    queued again, after TERM it is not; neither has ended for good."""
    process = start(job, "wait")
    deadline = time.monotonic() + 120
    while not (job.log_folder.parent / "runs").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    for _ in range(3):
        process.send_signal(number)
        time.sleep(0.1)
    assert process.wait(120) == 143
    assert calls(job, "scancels") == ["--signal=TERM 7.0"]
    requeues = [call for call in calls(job, "scontrols") if call.startswith("requeue")]
    assert requeues == (["requeue 7"] if is_requeued else [])
    assert outcome(job) is None


def test_a_job_out_of_time_too_often_ends(job: Job) -> None:
    assert start(job, "0", SLURM_RESTART_COUNT="4").wait(120) == 93
    assert outcome(job) == "failed: queued again too often" and not calls(job, "sruns")
