"""Queries the state of a job from Slurm's controller, at a limited rate."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Sequence

FINAL_STATES = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}  # squeue's names; https://slurm.schedmd.com/squeue.html#SECTION_JOB-STATE-CODES


def has_ended(job_id: str) -> bool:
    """Whether the controller says so, of every task; when it does not answer, the job may well go
    on."""
    try:
        query = ["squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%T"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    if answer.returncode != 0:
        return "Invalid job id" in answer.stderr  # ended so long ago that it is forgotten
    return all(state in FINAL_STATES for state in answer.stdout.split())


def states(job_id: str) -> list[str]:
    """The state of each task that the controller knows, as in ``["RUNNING"]``."""
    return _query(
        ["squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%T"]
    ).split()


def is_active(job_id: str) -> bool:
    """Whether the job, or a task of it, is pending or running."""
    return any(state not in FINAL_STATES for state in states(job_id))


def summary(job_ids: Sequence[str]) -> dict[str, str]:
    """{job: ``RUNNING`` or ``3 RUNNING, 2 PENDING (Priority)``} of those that the controller knows,
    by one question."""
    query = ["squeue", "--noheader", "--states=all", f"--jobs={','.join(job_ids)}"]
    found: dict[str, Counter[str]] = {}
    for line in _query([*query, "--array", "--format=%F|%T|%r"]).splitlines():
        job_id, state, reason = line.split("|", 2)
        waits = state == "PENDING" and reason not in ("None", "")
        found.setdefault(job_id, Counter())[f"{state} ({reason})" if waits else state] += 1
    return {
        job_id: ", ".join(s if sum(counts.values()) == 1 else f"{n} {s}" for s, n in counts.items())
        for job_id, counts in found.items()
    }


def state_of_job(job_id: str) -> str:
    """What Slurm says a job ended as: ``FAILED, exit status 1:0``; from the accounting, or, where
    the cluster keeps none, from the controller, which remembers a job for some minutes."""
    query = ["sacct", "--jobs", job_id, "--allocations", "--noheader", "--parsable2"]
    answer = _query([*query, "--format=State,ExitCode"]).strip()
    if "|" in answer:
        state, exit_status = answer.splitlines()[0].split("|")
        return f"{state}, exit status {exit_status}"
    values = dict(
        word.split("=", 1)
        for word in _query(["scontrol", "show", "job", job_id, "--oneliner"]).split()
        if "=" in word
    )
    if "JobState" not in values:
        return "in a state that neither sacct nor scontrol knows"
    reason = f", reason {values['Reason']}" if values.get("Reason", "None") != "None" else ""
    return f"{values['JobState']}, exit status {values.get('ExitCode', '?')}{reason}"


def release_failed_start(job_id: str) -> bool:
    """Let a job wait again that Slurm holds because a node could not start it; whether it was held.

    A node that was cut off, and comes back, may still have an earlier start of the job. Slurm then
    starts no second one there, drains the node and holds the job.
    """
    reason = _query(["squeue", "--noheader", f"--jobs={job_id}", "--format=%r"])
    is_held = "launch failed requeued held" in reason
    if is_held:
        _query(["scontrol", "release", job_id])
    return is_held


def terminate(job_id: str) -> None:
    """End the job: its script, when it runs, signals the ranks, so that they can checkpoint."""
    how = ["--batch", "--signal=TERM"] if "RUNNING" in states(job_id) else []
    _query(["scancel", *how, job_id])


def kill(job_id: str) -> None:
    """End the job at once."""
    _query(["scancel", job_id])


def _query(query: list[str]) -> str:
    """What a Slurm command prints; nothing when it fails."""
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
