"""Ranks in a Slurm job: a batch script that srun's one torchrun a node, submitted and waited for.

Two minutes before its time limit the job tells its ranks to checkpoint (SIGTERM), waits for them,
and queues itself again; the next start continues. ``--requeue`` does the same after a node fails.
https://slurm.schedmd.com/sbatch.html
"""

from __future__ import annotations

import itertools
import shlex
import subprocess
import sys
import time
from pathlib import Path

from launch.config import LaunchConfig
from launch.job import Job, LaunchError, Stopped
from launch.logs import LOG_FOLDER_VARIABLE, tail
from launch.process import last_words, not_here, prepare_logs, signals_passed_on

_SECONDS_BEFORE_LIMIT = 120
_OUTPUT = "slurm-%j.out"  # what the first rank says: shown here as well
_ERRORS = "slurm-%j.err"  # what torchrun and srun say
_SECONDS_BETWEEN_LOOKS = 5  # at the queue: controllers serve many users
_FINAL_STATES = {
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


def command(job: Job, config: LaunchConfig) -> list[str]:
    """``sbatch --parsable SCRIPT``, which prints the job's number."""
    return ["sbatch", "--parsable", str(job.log_folder / "job.sh")]


def script(job: Job, config: LaunchConfig) -> str:
    """The batch script."""
    options: dict[str, object] = {
        "job-name": job.title,
        "nodes": config.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": config.cpus_per_proc * config.procs_per_node,
        "time": config.time_limit_minutes,
        "output": job.log_folder / _OUTPUT,
        "error": job.log_folder / _ERRORS,
        "open-mode": "append",
        # B: to this script only, which then tells the ranks and knows why they end.
        "signal": f"B:USR1@{_SECONDS_BEFORE_LIMIT}",
    }
    if config.gpus_per_node:
        options["gpus-per-node"] = config.gpus_per_node
    if config.partition:
        options["partition"] = config.partition
    if config.account:
        options["account"] = config.account
    lines = ["#!/bin/bash", *(f"#SBATCH --{key}={value}" for key, value in options.items())]
    lines += ["#SBATCH --requeue", "set -u"]
    env = job.env | {LOG_FOLDER_VARIABLE: str(job.log_folder)}
    lines += [f"export {name}={shlex.quote(value)}" for name, value in env.items()]
    return "\n".join([*lines, _BODY.format(torchrun=_torchrun(job, config))])


# Signals go to the step by scancel: srun itself, told to end, kills its tasks before they can save.
# `wait` ends early at a trapped signal, hence the loop, until srun is really gone.
_BODY = """\
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
near_limit=0
tell_ranks() {{ scancel --signal=TERM "$SLURM_JOB_ID.0"; }}
trap 'near_limit=1; tell_ranks' USR1
trap tell_ranks TERM
srun --kill-on-bad-exit=1 {torchrun} &
ranks=$!
wait "$ranks"; status=$?
while [ "$status" -gt 128 ] && kill -0 "$ranks" 2>/dev/null; do wait "$ranks"; status=$?; done
if [ "$near_limit" -eq 1 ]; then
  echo "Out of time: queued again, to continue where it was."
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


def _torchrun(job: Job, config: LaunchConfig) -> str:
    before = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={config.nodes}"]
    # Expanded by bash in the job: the node list is not known before.
    rendezvous = f'--rdzv-backend=c10d --rdzv-endpoint="$first_node":{config.master_port}'
    after = [
        f"--nproc-per-node={config.procs_per_node}",
        "--max-restarts=0",
        "-m",
        job.module,
        *job.args,
    ]
    return f'{shlex.join(before)} {rendezvous} --rdzv-id="$SLURM_JOB_ID" {shlex.join(after)}'


def run(job: Job, config: LaunchConfig) -> None:
    """Submit the job and wait for it to end, however long it queues; see launch.job.

    What its first rank says appears here as it comes. SIGTERM or SIGINT here ends the job.
    """
    prepare_logs(job)
    (job.log_folder / "job.sh").write_text(script(job, config), "utf-8")
    job_id = _submit(job, config)
    print(f"Slurm job {job_id} ({job.title}), logs: {job.log_folder}", flush=True)
    with signals_passed_on(
        tell=lambda: _tell_to_stop(job_id), insist=lambda: _ask(["scancel", job_id])
    ) as received:
        _follow(job_id, job.log_folder / _OUTPUT.replace("%j", job_id))
    if received:
        raise Stopped(received[0])
    state = state_of_job(job_id)
    if not state.startswith("COMPLETED"):
        log = job.log_folder / _ERRORS.replace("%j", job_id)
        said = f"{job.title}: Slurm job {job_id} ended {state}"
        raise last_words(job) or LaunchError(said, log, tail(log))


def _submit(job: Job, config: LaunchConfig) -> str:
    """The new job's number."""
    try:
        sbatch = subprocess.run(command(job, config), capture_output=True, text=True)
    except FileNotFoundError as error:
        raise not_here("sbatch") from error
    if sbatch.returncode != 0:
        raise LaunchError(f"{job.title}: sbatch refused", job.log_folder / "job.sh", sbatch.stderr)
    return sbatch.stdout.strip().split(";")[0]  # a federation appends the cluster's name


def _follow(job_id: str, output: Path) -> None:
    """Copy the job's output to the screen until the job ended.

    Not by ``sbatch --wait``, which sleeps for half a minute at a time and lets nothing be shown
    meanwhile. A job that is queued again may pass through a final state, so two looks in a row
    have to agree.
    """
    shown_bytes, looks_that_say_ended = 0, 0
    for seconds in itertools.count():
        if seconds % _SECONDS_BETWEEN_LOOKS == 0:
            looks_that_say_ended = looks_that_say_ended + 1 if _has_ended(job_id) else 0
        shown_bytes = _show_from(output, shown_bytes)
        if looks_that_say_ended == 2:
            return
        time.sleep(1)


def _has_ended(job_id: str) -> bool:
    """Whether the controller says so; when it does not answer, the job may well go on."""
    query = ["squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%T"]
    said = subprocess.run(query, capture_output=True, text=True)
    if said.returncode != 0:
        return "Invalid job id" in said.stderr  # ended so long ago that it is forgotten
    return said.stdout.strip() in _FINAL_STATES


def state_of_job(job_id: str) -> str:
    """What Slurm says a job ended as: ``FAILED, exit status 1:0``; from the accounting, or, where
    the cluster keeps none, from the controller, which remembers a job for some minutes."""
    query = ["sacct", "--jobs", job_id, "--allocations", "--noheader", "--parsable2"]
    said = _ask([*query, "--format=State,ExitCode"]).strip()
    if "|" in said:
        state, exit_status = said.splitlines()[0].split("|")
        return f"{state}, exit status {exit_status}"
    words = dict(
        word.split("=", 1)
        for word in _ask(["scontrol", "show", "job", job_id, "--oneliner"]).split()
        if "=" in word
    )
    if "JobState" not in words:
        return "in a state that neither sacct nor scontrol tells"
    reason = f", reason {words['Reason']}" if words.get("Reason", "None") != "None" else ""
    return f"{words['JobState']}, exit status {words.get('ExitCode', '?')}{reason}"


def _tell_to_stop(job_id: str) -> None:
    """End the job: its script, when it runs, tells the ranks, so that they can checkpoint."""
    state = _ask(["squeue", "--noheader", f"--jobs={job_id}", "--format=%T"]).strip()
    how = ["--batch", "--signal=TERM"] if state == "RUNNING" else []
    _ask(["scancel", *how, job_id])


def _ask(query: list[str]) -> str:
    """What a Slurm command prints; nothing when it fails."""
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


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
