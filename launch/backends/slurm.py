"""Submits a Slurm job, follows it, and finds it again when the command is repeated.

Before its time limit the job lets its ranks save, and queues itself again; the next start
continues. ``--requeue`` does the same after a node fails. The job's number is stored: a command
that is started while the job is pending or running follows it and submits no second one.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from launch.backends import slurm_queue
from launch.backends.slurm_script import script
from launch.config import LaunchConfig
from launch.job import Job, LaunchError, Stopped, UserError
from launch.logs import read_failures, tail
from launch.paths import JobPaths
from launch.processes.process import forwarded_signals, missing_command, prepare_logs

__all__ = ["attach", "command", "has_active_job", "run", "script", "submitted_job"]

_SECONDS_BETWEEN_QUERIES = 5  # controllers serve many users
_LEAST_FREE_BYTES = 1 << 20
_SECONDS_BETWEEN_RELEASES = 30
_MAX_RELEASES = 3
"""Each failed start drains a node: the fault may be the cluster's."""


def command(job: Job, config: LaunchConfig) -> list[str]:
    """``sbatch --parsable SCRIPT``, started in the log folder; it prints the job's number."""
    return ["sbatch", "--parsable", job.paths.script.name]


def run(job: Job, config: LaunchConfig) -> None:
    """Submit the job, unless it is pending or running already, and follow it to its end, however
    long it queues; see launch.job.

    What its first rank prints appears here as it comes. SIGTERM or SIGINT here ends the job.
    """
    job_id = submitted_job(job.paths)
    if job_id is not None and slurm_queue.is_active(job_id):
        print(f"Slurm job {job_id} ({job.title}) was submitted before; following it", flush=True)
    else:
        prepare_logs(job)
        job.paths.script.write_text(script(job, config), "utf-8")
        job_id = _submit(job, config)
        print(f"Slurm job {job_id} ({job.title}), logs: {job.log_folder}", flush=True)
    with forwarded_signals(
        terminate=lambda: slurm_queue.terminate(job_id),
        force_kill=lambda: slurm_queue.kill(job_id),
    ) as received:
        _follow(job_id, _screen(job, job_id))
    if received:
        raise Stopped(received[0])
    _check_end(job, job_id)


def attach(paths: JobPaths, job_id: str) -> None:
    """Show what the job prints until it ends. Ctrl-C ends the showing, not the job."""
    output = paths.slurm_output(job_id)
    array = paths.folder / f"slurm-{job_id}-0.out"
    _follow(job_id, array if array.exists() else output)


def submitted_job(paths: JobPaths) -> str | None:
    """The number of the job that was submitted last; None where there was none."""
    try:
        return str(json.loads(paths.submitted.read_text("utf-8"))["job_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def has_active_job(paths: JobPaths) -> bool:
    """Whether the job that was submitted last is pending or running."""
    job_id = submitted_job(paths)
    return job_id is not None and slurm_queue.is_active(job_id)


def _check_end(job: Job, job_id: str) -> None:
    """LaunchError or UserError unless the job ended well. Of an array it is enough that one task
    did: a worker ends well only when every shard is done."""
    outcome = job.paths.outcome(job_id)
    if outcome.is_file() and outcome.read_text("utf-8").startswith("finished"):
        return
    if job.is_elastic and "COMPLETED" in slurm_queue.states(job_id):
        return
    state = slurm_queue.state_of_job(job_id)
    if state.startswith("COMPLETED"):
        return
    log = job.paths.slurm_errors(job_id)
    state = f"{job.title}: Slurm job {job_id} ended {state}"
    if shutil.disk_usage(job.log_folder).free < _LEAST_FREE_BYTES:
        raise UserError(
            f"{state}; the disk of {job.log_folder} is full: free some space, then run the same "
            "command again."
        )
    failures = read_failures(job.paths)
    raise (
        failures[0].as_error(job.title, job.paths)
        if failures
        else LaunchError(state, log, tail(log))
    )


def _screen(job: Job, job_id: str) -> Path:
    if job.is_elastic:
        return job.log_folder / f"slurm-{job_id}-0.out"
    return job.paths.slurm_output(job_id)


def _submit(job: Job, config: LaunchConfig) -> str:
    """The new job's number, which is stored as well."""
    try:
        sbatch = subprocess.run(
            command(job, config), capture_output=True, text=True, cwd=job.log_folder
        )
    except FileNotFoundError as error:
        raise missing_command("sbatch") from error
    if sbatch.returncode != 0:
        raise LaunchError(f"{job.title}: sbatch refused", job.paths.script, sbatch.stderr)
    job_id = sbatch.stdout.strip().split(";")[0]  # a federation appends the cluster's name
    text = json.dumps({"job_id": job_id, "submitted": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
    beside = job.paths.submitted.with_suffix(".tmp")
    beside.write_text(text, "utf-8")
    beside.replace(job.paths.submitted)
    return job_id


def _follow(job_id: str, output: Path) -> None:
    """Copy the job's output to the screen until the job ended.

    Not by ``sbatch --wait``, which sleeps for half a minute at a time and lets nothing be shown
    meanwhile. A job that is queued again may pass through a final state, so two answers in a row
    have to agree.
    """
    shown_bytes, answers_that_say_ended, num_releases = 0, 0, 0
    for seconds in itertools.count():
        if seconds % _SECONDS_BETWEEN_QUERIES == 0:
            has_ended = slurm_queue.has_ended(job_id)
            answers_that_say_ended = answers_that_say_ended + 1 if has_ended else 0
        if seconds % _SECONDS_BETWEEN_RELEASES == 0 and num_releases < _MAX_RELEASES:
            if slurm_queue.release_failed_start(job_id):
                num_releases += 1
                print(
                    f"Slurm held job {job_id}, as a node could not start it: released", flush=True
                )
        shown_bytes = _show_from(output, shown_bytes)
        if answers_that_say_ended == 2:
            return
        time.sleep(1)


def _show_from(output: Path, shown_bytes: int) -> int:
    """Copy what is new in a file to the screen; returns how much is shown now."""
    if not output.is_file():
        return shown_bytes
    with output.open("rb") as source:
        source.seek(shown_bytes)
        new = source.read()
    sys.stdout.write(new.decode("utf-8", "replace"))
    sys.stdout.flush()
    return shown_bytes + len(new)
