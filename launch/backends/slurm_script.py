"""The batch scripts of Slurm jobs.

A job of ranks that train together runs one agent a node (``launch.agent``). A job of workers that
share shards by claims is an array, one worker a task: any number of them may run, and one that is
lost or preempted costs its shard only.

Options are ``#SBATCH`` lines, with no path of the run in them: sbatch is started in the log
folder. https://slurm.schedmd.com/sbatch.html
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from launch.backends.torchrun import preload_variables, several_nodes, worker_options
from launch.config import LaunchConfig
from launch.job import EXIT_NO_PROGRESS, Job
from launch.logs import LOG_FOLDER_VARIABLE

_NUM_STEP_STARTS = 3  # srun again after an agent was killed


def script(job: Job, config: LaunchConfig) -> str:
    """The batch script of ``job``."""
    lines = ["#!/bin/bash"]
    for name, value in _options(job, config).items():
        text = f"--{name}={value}" if value != "" else f"--{name}"
        lines.append(f"#SBATCH {_quoted(text)}")
    lines.append("set -u")
    if not _is_plain(job.log_folder):
        base = shlex.quote(str(job.log_folder.resolve() / "slurm-"))
        number, task = _job_number(job), "-$SLURM_ARRAY_TASK_ID" if job.is_elastic else ""
        lines.append(f'exec >>{base}"{number}{task}.out" 2>>{base}"{number}.err"')
    lines += [f"cd {shlex.quote(str(Path.cwd()))} || exit 1"]
    env = preload_variables(job) | job.env
    env[LOG_FOLDER_VARIABLE] = str(job.log_folder.resolve())
    lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted(env.items())]
    lines += config.slurm.setup_lines
    body = _array_body(job, config) if job.is_elastic else _ranks_body(job, config)
    return "\n".join([*lines, body])


def num_tasks(config: LaunchConfig) -> int:
    """Tasks of an array: a worker each."""
    return config.nodes * config.procs_per_node


def _options(job: Job, config: LaunchConfig) -> dict[str, object]:
    options: dict[str, object] = {"job-name": job.title}
    if job.is_elastic:
        limit = f"%{config.slurm.array_limit}" if config.slurm.array_limit else ""
        options |= {
            "array": f"0-{num_tasks(config) - 1}{limit}",
            "nodes": 1,
            "ntasks": 1,
            "cpus-per-task": config.cpus_per_proc,
            "output": "slurm-%A-%a.out",
            "error": "slurm-%A.err",
        }
        gpus = -(-config.gpus_per_node // config.procs_per_node)
    else:
        few = config.min_nodes or config.nodes
        options |= {
            "nodes": config.nodes,
            "ntasks-per-node": 1,
            "cpus-per-task": config.cpus_per_proc * config.procs_per_node,
            "output": "slurm-%j.out",
            "error": "slurm-%j.err",
            # B: to this script only, which then signals the ranks and knows why they end.
            "signal": f"B:USR1@{config.checkpoint_seconds_before_limit}",
        }
        if few < config.nodes:
            options["no-kill"] = ""
        gpus = config.gpus_per_node
    if not _is_plain(job.log_folder):
        options |= {"output": "/dev/null", "error": "/dev/null"}
    options |= {"time": config.time_limit_minutes, "open-mode": "append", "requeue": ""}
    if gpus and "gres" not in config.slurm_options:
        options["gpus-per-node"] = gpus
    return options | config.slurm_options


def _is_plain(folder: Path) -> bool:
    """Whether Slurm takes the folder's path as it is: it would fill in ``%j`` there, too. Where it
    does not, the script itself opens the files."""
    return re.fullmatch(r"[\w./+=@,:-]+", str(folder.resolve()), re.ASCII) is not None


def _job_number(job: Job) -> str:
    return "$SLURM_ARRAY_JOB_ID" if job.is_elastic else "$SLURM_JOB_ID"


def _quoted(option: str) -> str:
    """For an ``#SBATCH`` line, which knows double quotes; values have none (SlurmConfig)."""
    return f'"{option}"' if " " in option else option


# Signals go to the step by scancel: a srun that gets them kills its tasks before they can save.
# `wait` ends early at a trapped signal, hence the loop, until srun is really gone.
_RANKS = """\
outcome={logs}/slurm-$SLURM_JOB_ID.outcome
end() {{ echo "$2" > "$outcome"; exit "$1"; }}
[ -e "$outcome" ] && exit 0  # it ended, and was queued again by mistake
restarts=${{SLURM_RESTART_COUNT:-0}}
if [ "$restarts" -gt {max_requeues} ]; then
  echo "Queued again $restarts times; launch.max_requeues is {max_requeues}." >&2
  end {no_progress} "failed: queued again too often"
fi
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
head=$(scontrol show node "$first_node" --oneliner | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')
head=${{head:-$first_node}}
port={port}
near_limit=0; stopped=0; step=0
signal_ranks() {{ scancel --signal=TERM "$SLURM_JOB_ID.$step"; }}
trap '[ "$near_limit" -eq 1 ] || {{ near_limit=1; signal_ranks; }}' USR1
trap '[ "$stopped" -eq 1 ] || {{ stopped=1; signal_ranks; }}' TERM
while :; do
  srun {srun} &
  ranks=$!
  wait "$ranks"; status=$?
  while [ "$status" -gt 128 ] && kill -0 "$ranks" 2>/dev/null; do wait "$ranks"; status=$?; done
  [ "$near_limit" -eq 1 ] || [ "$stopped" -eq 1 ] && break
  # An agent was killed: once more, on the same nodes.
  [ "$status" -eq 137 ] && [ "$step" -lt {num_step_starts} ] || break
  step=$((step + 1))
  echo "boxless: an agent was killed; start $step" >&2
done
if [ "$near_limit" -eq 1 ] && [ "$status" -ne 0 ]; then
  if [ "$restarts" -ge {max_requeues} ]; then
    end {no_progress} "failed: out of time, and queued again as often as launch.max_requeues allows"
  fi
  echo "Out of time: queued again, to continue where it was."
  scontrol requeue "$SLURM_JOB_ID"
  exit "$status"
fi
[ "$stopped" -eq 1 ] && [ "$status" -ne 0 ] && exit "$status"
[ "$status" -eq 143 ] && exit 143  # Slurm itself ended the ranks: preempted, or cancelled
[ "$status" -eq 0 ] && end 0 finished
end "$status" "failed: exit status $status"
"""
_ARRAY = """\
export RANK=$SLURM_ARRAY_TASK_ID LOCAL_RANK=0 WORLD_SIZE=1
if [ "${{SLURM_RESTART_COUNT:-0}}" -gt {max_requeues} ]; then exit {no_progress}; fi
exec srun {srun}
"""


def _ranks_body(job: Job, config: LaunchConfig) -> str:
    port = config.master_port or "$((20000 + (SLURM_JOB_ID % 20000) * 2))"
    return _RANKS.format(
        logs=shlex.quote(str(job.log_folder.resolve())),
        max_requeues=config.max_requeues,
        no_progress=EXIT_NO_PROGRESS,
        num_step_starts=_NUM_STEP_STARTS,
        port=port,
        srun=_srun(job, config),
    )


def _srun(job: Job, config: LaunchConfig) -> str:
    rendezvous = [
        *several_nodes(job, config, is_host="{is_host}"),
        "--rdzv-endpoint=$head:$port",
        "--rdzv-id=$SLURM_JOB_ID.$step",
        "--local-addr={address}",
    ]
    options = {
        "title": job.title,
        "logs": str(job.log_folder.resolve()),
        "head": "$head",
        "port": "$port",
        "max-restarts": str(config.restarts if job.can_restart else 0),
        "hang-seconds": str(config.hang_seconds),
    }
    python = _python(config)
    words = [python, "-m", "launch.agent"]
    words += [f"--{name}={value}" for name, value in options.items()]
    words += ["--", python, *worker_options(job, config, rendezvous)]
    cpus = config.cpus_per_proc * config.procs_per_node
    own = ["--kill-on-bad-exit=1", f"--cpus-per-task={cpus}"]
    if config.min_nodes and config.min_nodes < config.nodes:
        own = ["--no-kill", "--kill-on-bad-exit=0", f"--cpus-per-task={cpus}"]
    # Bash in the job fills in what is not known before: these words are in double quotes.
    return " ".join([*own, *map(_word, [*_container(config), *words])])


def _array_body(job: Job, config: LaunchConfig) -> str:
    words = [*_container(config), _python(config), "-m", job.module, *job.args]
    own = ["--ntasks=1", f"--cpus-per-task={config.cpus_per_proc}"]
    return _ARRAY.format(
        max_requeues=config.max_requeues,
        no_progress=EXIT_NO_PROGRESS,
        srun=" ".join([*own, *map(shlex.quote, words)]),
    )


def _word(text: str) -> str:
    """Quoted for bash, but for the variables of the script."""
    for name in ("$head:$port", "$SLURM_JOB_ID.$step", "$head", "$port"):
        if text.endswith(f"={name}"):
            return shlex.quote(text.removesuffix(name)) + f'"{name}"'
    return shlex.quote(text)


def _python(config: LaunchConfig) -> str:
    return config.slurm.container_python if config.slurm.container_image else sys.executable


def _container(config: LaunchConfig) -> list[str]:
    slurm = config.slurm
    if slurm.container_image is None:
        return []
    mounts = ",".join(slurm.container_mounts)
    if slurm.container_runtime == "pyxis":
        binds = [f"--container-mounts={mounts}"] if mounts else []
        return [f"--container-image={slurm.container_image}", *binds]
    nvidia = ["--nv"] if config.gpus_per_node or slurm.gres else []
    binds = ["--bind", mounts] if mounts else []
    return ["apptainer", "exec", *nvidia, *binds, slurm.container_image]
