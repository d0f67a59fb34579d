"""A real Slurm for tests: controller and node daemon on this machine's loopback, in a temporary
folder, and jobs whose ranks write down what they saw. Beside the one real node there are 66 nodes
of 8 GPUs that only the controller knows, for ``sbatch --test-only``.

Debian: apt-get install slurm-wlm munge, and run as root.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launch.config import LaunchConfig
from launch.job import Job

ROOT = Path(__file__).resolve().parents[2]
DAEMONS = ("munged", "slurmctld", "slurmd")
os.environ["PATH"] += f"{os.pathsep}/usr/sbin"  # where Debian puts daemons

needs_slurm = pytest.mark.skipif(
    not all(map(shutil.which, (*DAEMONS, "sbatch", "srun"))) or os.geteuid() != 0,
    reason="needs Slurm and munge installed, and root to start them",
)

CONFIG = """
    ClusterName=test
    SlurmctldHost={host}(127.0.0.1)
    SlurmctldPort={controller_port}
    SlurmdPort={node_port}
    SlurmUser=root
    AuthType=auth/munge
    AuthInfo=socket={folder}/munge.socket
    StateSaveLocation={folder}/state
    SlurmdSpoolDir={folder}/spool
    SlurmctldPidFile={folder}/slurmctld.pid
    SlurmdPidFile={folder}/slurmd.pid
    ProctrackType=proctrack/linuxproc
    TaskPlugin=task/none
    MpiDefault=none
    SelectType=select/cons_tres
    SelectTypeParameters=CR_CPU
    SlurmdParameters=config_overrides
    AccountingStorageType=accounting_storage/none
    JobAcctGatherType=jobacct_gather/none
    ReturnToService=2
    KillWait=10
    GresTypes=gpu
    SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0,sched_min_interval=0
    Licenses=data:4
    SuspendProgram=/bin/true
    ResumeProgram=/bin/true
    SuspendTime=1000000
    NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
    NodeName=gpu[1-66] NodeAddr=127.0.0.1 CPUs=128 RealMemory=1000000 Gres=gpu:a100:8 Feature=a100,nvlink State=CLOUD
    PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
    PartitionName=gpu Nodes=gpu[1-66] MaxTime=INFINITE State=UP
"""

RANK_SCRIPT = """
    import os, signal, sys, time
    from pathlib import Path
    from launch.logs import LOG_FOLDER_VARIABLE, open_log, record_failure

    rank, here, action = int(os.environ["RANK"]), Path(sys.argv[1]), sys.argv[2]
    logs = Path(os.environ[LOG_FOLDER_VARIABLE])
    open_log(logs, rank)
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    saved = here / f"saved-{rank}.txt"
    (here / f"rank-{rank}.txt").write_text(
        f"{os.environ['WORLD_SIZE']} {os.environ['COLOUR']} {os.environ['SLURM_JOB_ID']}"
    )
    print(f"out of rank {rank}", flush=True)
    if action == "wait" and not saved.exists():
        while not stopped:
            time.sleep(0.05)
        saved.write_text("")
        sys.exit(143)
    if rank == 1 and action == "raise":
        try:
            raise RuntimeError("boom")
        except RuntimeError as error:
            record_failure(logs, rank, error, is_users=False)
        sys.exit(1)
    if rank == 1 and action == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    print("all done", flush=True)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_slurm(folder: Path) -> Iterator[Path]:
    """munged, slurmctld and slurmd of the caller's own in ``folder``, ended on leaving; SLURM_CONF
    leads to them."""
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    text = textwrap.dedent(CONFIG).format(
        host=socket.gethostname().split(".")[0],
        folder=folder,
        controller_port=free_port(),
        node_port=free_port(),
    )
    (folder / "slurm.conf").write_text(text)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    munged = ["munged", "--foreground", "--force", f"--key-file={folder}/munge.key"]
    munged += [f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge.pid"]
    munged += [f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"]
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = f"{folder}/slurm.conf"
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in (munged, ["slurmctld", "-D", "-i"], ["slurmd", "-D"]):
            log = (folder / f"{command[0]}.out").open("wb")
            daemons.append(subprocess.Popen(command, stdout=log, stderr=log))
            log.close()
            if command is munged:
                wait_until(lambda: (folder / "munge.socket").exists(), "munged has no socket")
        query = ["sinfo", "--noheader", "--format=%t", "--partition=all"]
        wait_until(lambda: "idle" in ask(query), logs_of(folder))
        yield folder
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(timeout=60)
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


def ask(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


def logs_of(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace")[-2000:] for path in folder.glob("*.out"))


def wait_until(is_so: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 180
    while not is_so():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.1)


def make_job(folder: Path, action: str) -> tuple[Job, LaunchConfig]:
    (folder / "rank_script.py").write_text(textwrap.dedent(RANK_SCRIPT))
    job = Job(
        title="toy-test",
        module="rank_script",
        args=(str(folder), action),
        log_folder=folder / "logs",
        env={
            "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
            "COLOUR": "deep red",
            "OMP_NUM_THREADS": "1",
        },
    )
    config = LaunchConfig(
        launcher="slurm", procs_per_node=2, master_port=free_port(), time_limit_minutes=5
    )
    return job, config


def once_up(folder: Path, act: Callable[[str], object]) -> threading.Thread:
    """Call ``act(job id)`` when both ranks are ready for a signal."""

    def wait_and_act() -> None:
        paths = [folder / f"rank-{rank}.txt" for rank in (0, 1)]
        wait_until(lambda: all(p.exists() and p.read_text() for p in paths), "no ranks")
        act(paths[0].read_text().split()[-1])

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    return thread
