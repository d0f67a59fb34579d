"""The slurm launcher under a real Slurm: controller and node daemon on this machine's loopback, in
a temporary folder. Skipped where Slurm is not installed or may not be started. Oracle: rank scripts
that write down what they saw, and Slurm's own word on how a job ended.

Debian: apt-get install slurm-wlm munge, and run as root.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch.backends import slurm, slurm_queue
from launch.config import LaunchConfig
from launch.job import Job, LaunchError, Stopped, UserError

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
    NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
    PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
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


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """munged, slurmctld and slurmd of this test's own, ended with it; SLURM_CONF leads to them."""
    folder = Path(tmp_path_factory.mktemp("slurm"))
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
        wait_until(lambda: "idle" in ask(["sinfo", "--noheader", "--format=%t"]), logs_of(folder))
        yield folder
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(timeout=30)
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


def ask(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout


def logs_of(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace")[-2000:] for path in folder.glob("*.out"))


def wait_until(is_so: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 60
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
def test_what_sbatch_refuses_is_told(cluster: Path, tmp_path: Path) -> None:
    job, config = make_job(tmp_path, "end")
    absent = LaunchConfig(launcher="slurm", partition="no-such", time_limit_minutes=5)
    with pytest.raises(LaunchError, match="invalid partition specified: no-such"):
        slurm.run(job, absent)


def test_without_slurm_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
