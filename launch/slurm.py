"""Ranks in a Slurm job: a batch script that srun's one torchrun a node, submitted and waited for.

Two minutes before its time limit the job tells its ranks to checkpoint (SIGTERM), waits for them,
and queues itself again; the next start continues. ``--requeue`` does the same after a node fails.
https://slurm.schedmd.com/sbatch.html
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import threading
from pathlib import Path

from launch.config import LaunchConfig
from launch.job import Job, LaunchError
from launch.logs import LOG_FOLDER_VARIABLE, first_failure, tail
from launch.process import run_process

_SECONDS_BEFORE_LIMIT = 120
_OUTPUT = "slurm-%j.out"  # what the first rank says: shown here as well
_ERRORS = "slurm-%j.err"  # what torchrun and srun say


def command(job: Job, config: LaunchConfig) -> list[str]:
    """``sbatch --parsable --wait SCRIPT``: ends when the job does, with the job's exit status."""
    return ["sbatch", "--parsable", "--wait", str(job.log_folder / "job.sh")]


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
    job.log_folder.mkdir(parents=True, exist_ok=True)
    (job.log_folder / "job.sh").write_text(script(job, config), "utf-8")
    submitted: list[str] = []
    ended = threading.Event()
    followers: list[threading.Thread] = []

    def follow(process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        job_id = process.stdout.readline().decode().strip().split(";")[0]
        if not job_id:
            return  # sbatch refused, and says why in launcher.log
        submitted.append(job_id)
        output = _log(job, _OUTPUT, job_id)
        print(f"Slurm job {job_id} ({job.title}), output: {output}", flush=True)
        followers.append(threading.Thread(target=_show_as_it_grows, args=(output, ended)))
        followers[0].start()

    try:
        run_process(
            command(job, config),
            job,
            started=follow,
            tell_to_stop=lambda: _tell_to_stop(submitted),
        )
    except LaunchError as error:
        if submitted and first_failure(job.log_folder) is None:
            log = _log(job, _ERRORS, submitted[0])
            state = f"{job.title}: Slurm job {submitted[0]} ended {state_of_job(submitted[0])}"
            raise LaunchError(state, log, tail(log)) from error
        raise
    finally:
        ended.set()
        for follower in followers:
            follower.join()


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


def _tell_to_stop(submitted: list[str]) -> None:
    """End the job: its script, when it runs, tells the ranks, so that they can checkpoint."""
    for job_id in submitted:
        is_running = _ask(["squeue", "--noheader", "--jobs", job_id, "--format=%T"]).strip()
        how = ["--batch", "--signal=TERM"] if is_running == "RUNNING" else []
        _ask(["scancel", *how, job_id])


def _ask(query: list[str]) -> str:
    """What a Slurm command prints; nothing when it fails."""
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _log(job: Job, name: str, job_id: str) -> Path:
    return job.log_folder / name.replace("%j", job_id)


def _show_as_it_grows(output: Path, ended: threading.Event) -> None:
    """Copy a job's output to the screen until the job ended and all of it was shown."""
    shown_bytes = 0
    while True:
        is_last = ended.wait(1.0)
        if output.is_file():
            with output.open("rb") as source:
                source.seek(shown_bytes)
                new = source.read()
            shown_bytes += len(new)
            sys.stdout.write(new.decode("utf-8", "replace"))
            sys.stdout.flush()
        if is_last:
            return
