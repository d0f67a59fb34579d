"""The slurm launcher under a real Slurm (tests.launch.slurm_cluster). Skipped where Slurm is not
installed or may not be started. Oracle: rank scripts that write down what they saw, and Slurm's own
word on how a job ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.backends import slurm, slurm_queue
from launch.config import LaunchConfig
from launch.job import LaunchError, Stopped, UserError
from tests.launch.slurm_cluster import ask, make_job, needs_slurm, once_up, wait_until


@needs_slurm
def test_a_job_runs_to_its_end(
    cluster: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two ranks with the job's environment; what the first one says reaches the screen here."""
    slurm.run(*make_job(tmp_path, "end"))
    for rank in (0, 1):
        assert (tmp_path / f"rank-{rank}.txt").read_text().startswith("2 deep red ")
    said = capfd.readouterr().out
    assert "Slurm job" in said and "out of rank 0\nall done\n" in said
    assert "out of rank 1" not in said


@needs_slurm
def test_a_failing_rank_is_named(cluster: Path, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="rank 1 on .* failed: RuntimeError: boom") as caught:
        slurm.run(*make_job(tmp_path, "raise"))
    assert caught.value.tail.strip().endswith("RuntimeError: boom")


@needs_slurm
def test_a_killed_rank_gives_slurms_word(cluster: Path, tmp_path: Path) -> None:
    """No rank had last words, so the job's state and the end of its log stand for them."""
    with pytest.raises(LaunchError, match=r"Slurm job \d+ ended FAILED, exit status 1:0") as caught:
        slurm.run(*make_job(tmp_path, "die"))
    assert "SIGKILL" in caught.value.tail


@needs_slurm
def test_a_signal_ends_the_job_and_ranks_save(cluster: Path, tmp_path: Path) -> None:
    sender = once_up(tmp_path, lambda job_id: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Stopped):
        slurm.run(*make_job(tmp_path, "wait"))
    sender.join()
    assert all((tmp_path / f"saved-{rank}.txt").exists() for rank in (0, 1))
    wait_until(lambda: not ask(["squeue", "--noheader"]).strip(), "the job is still there")


@needs_slurm
def test_near_its_time_limit_a_job_saves_and_is_queued_again(
    cluster: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The signal that Slurm sends two minutes before the limit is sent here by hand; the second
    start finds what the first saved and ends well, and only then does the launcher."""

    def signal_and_hurry(job_id: str) -> None:
        subprocess.run(["scancel", "--batch", "--signal=USR1", job_id], check=True)
        query = ["squeue", "--noheader", "--format=%T", f"--jobs={job_id}"]
        wait_until(lambda: "PENDING" in ask(query), "the job was not queued again")
        # Slurm lets a job that was queued again wait two minutes, until the credential of its
        # first start has surely expired. Here a few seconds do.
        subprocess.run(["scontrol", "update", f"JobId={job_id}", "StartTime=now+4"], check=True)

    sender = once_up(tmp_path, signal_and_hurry)
    slurm.run(*make_job(tmp_path, "wait"))
    sender.join()
    said = capfd.readouterr().out
    assert "queued again" in said and said.count("out of rank 0") == 2 and "all done" in said


@needs_slurm
def test_what_sbatch_refuses_is_reported(cluster: Path, tmp_path: Path) -> None:
    job, config = make_job(tmp_path, "end")
    absent = LaunchConfig(launcher="slurm", partition="no-such", time_limit_minutes=5)
    with pytest.raises(LaunchError, match="invalid partition specified: no-such"):
        slurm.run(job, absent)


def test_without_slurm_it_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch is not on this machine"):
        slurm.run(*make_job(tmp_path, "end"))


def test_states_from_the_accounting_and_from_the_controller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sacct's and scontrol's own layouts, told by stand-ins; oracle: their documentation."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    for name, said in (
        ("sacct", "OUT_OF_MEMORY|0:125"),
        ("scontrol", "JobId=7 JobName=x JobState=TIMEOUT Reason=TimeLimit ExitCode=0:15"),
    ):
        (tmp_path / name).write_text(f"#!{sys.executable}\nprint({said!r})\n")
        (tmp_path / name).chmod(0o755)
    assert slurm_queue.state_of_job("7") == "OUT_OF_MEMORY, exit status 0:125"
    (tmp_path / "sacct").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm_queue.state_of_job("7") == "TIMEOUT, exit status 0:15, reason TimeLimit"
    (tmp_path / "scontrol").unlink()
    assert "neither" in slurm_queue.state_of_job("7")


def test_a_job_that_slurm_holds_after_a_failed_start_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """squeue's words for it, of Slurm 22.05; other reasons to wait are left alone."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    release = tmp_path / "scontrol"
    release.write_text(f"#!/bin/sh\necho $@ > {tmp_path}/asked\n")
    release.chmod(0o755)
    for reason, is_held in (("Resources", False), ("launch failed requeued held", True)):
        (tmp_path / "squeue").write_text(f"#!/bin/sh\necho '{reason}'\n")
        (tmp_path / "squeue").chmod(0o755)
        assert slurm_queue.release_failed_start("7") is is_held
        assert (tmp_path / "asked").exists() is is_held
    assert (tmp_path / "asked").read_text().split() == ["release", "7"]
