"""Launchers on three nodes: a Slurm cluster in namespaces of this machine, whose nodes have
accidents. Skipped where it cannot be started. Oracle: the sum that training reaches, which counts
every sample once whatever happened, and who Slurm and the hosts say took part.

Debian: apt-get install slurmctld slurmd slurm-client munge iproute2 openssh-server pdsh; as root.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.launch.cluster import Cluster
from benchmarks.launch.goodput import FAULTS, Drill
from benchmarks.launch.small_trainer import CHECKPOINT, STEPS
from launch.events import read_events
from launch.node_check import PACKAGES
from launch.paths import JobPaths

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "../shared/cluster/nscluster.sh"
os.environ["PATH"] += f"{os.pathsep}/usr/sbin"  # where Debian puts daemons
COMMANDS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare", "nsenter")

pytestmark = [
    pytest.mark.skipif(
        "MULTINODE_TESTS" not in os.environ, reason="takes minutes: make multinode-test runs it"
    ),
    pytest.mark.skipif(
        not SCRIPT.is_file(), reason="needs the script of a small cluster in ../shared/cluster"
    ),
    pytest.mark.skipif(
        not all(map(shutil.which, COMMANDS)) or os.geteuid() != 0,
        reason=f"needs {', '.join(COMMANDS)}, and root",
    ),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(SCRIPT)
    try:
        cluster("up", "3")
        if cluster("ctl", "sinfo", "-h", "-t", "idle", "-o", "%D").strip() != "3":
            pytest.skip("the cluster did not start: namespaces may be forbidden here")
        yield cluster
    finally:
        cluster.down()


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("job")


@pytest.mark.parametrize("fault", ["rank killed", "agent killed", "rank stopped"])
def test_training_goes_on_in_its_allocation(fault: str, cluster: Cluster, folder: Path) -> None:
    """One Slurm job throughout, never queued again."""
    drill = Drill(cluster, folder / "run", {"nodes": 2}, 40)
    assert drill.wait_for_world(2, 240), (folder / "run/screen.log").read_text()
    FAULTS[fault](cluster, "n2")
    assert drill.wait_for_step(40, 240) is not None
    assert drill.process.wait(60) == 0
    assert drill.wrong_sums() == 0
    assert len(list((folder / "run/logs").glob("slurm-*.outcome"))) == 1
    if fault == "rank stopped":
        assert any("was stopped (SIGSTOP)" in cause for cause in drill.faults_seen())


def test_training_goes_on_with_fewer_nodes(cluster: Cluster, folder: Path) -> None:
    """Of two nodes one loses power; the other takes its share of every step."""
    drill = Drill(cluster, folder / "run", {"nodes": 2, "min_nodes": 1}, 60)
    assert drill.wait_for_world(2, 240), (folder / "run/screen.log").read_text()
    FAULTS["node without power"](cluster, "n2")
    try:
        last = drill.wait_for_step(60, 240)
        assert last is not None and last["world"] == 1
        assert drill.wrong_sums() == 0
        assert "a node was lost" in drill.faults_seen()
    finally:
        cluster("start", "n2")
        drill.end()


def test_restarts_without_a_new_step_end_the_job_with_their_own_status(
    cluster: Cluster, folder: Path
) -> None:
    """Ranks that cannot read their checkpoint."""
    drill = Drill(cluster, folder / "run", {"nodes": 1, "max_restarts": 1}, 10)
    (folder / "run" / CHECKPOINT).mkdir()  # a folder where a file should be
    assert drill.process.wait(240) != 0
    text = (folder / "run/screen.log").read_text()
    assert "IsADirectoryError" in text
    kinds = [e["event"] for e in read_events(JobPaths(folder / "run/logs").events)]
    assert kinds.count("restart") == 2 and kinds[-1] == "failure"
    outcome = next((folder / "run/logs").glob("slurm-*.outcome")).read_text()
    assert outcome.strip() == "failed: exit status 93"


@pytest.mark.skipif(
    not all(map(shutil.which, ("sshd", "ssh", "ssh-keygen", "pdsh"))),
    reason="needs openssh-server and pdsh",
)
def test_deepspeeds_launcher_trains_on_two_hosts_over_ssh(cluster: Cluster, folder: Path) -> None:
    hosts = cluster.start_sshd(folder, ("n1", "n2"))
    run = folder / "run"
    run.mkdir()
    code = f"""
        from pathlib import Path
        from launch.backends import deepspeed
        from launch.config import LaunchConfig
        from launch.job import Job
        folder = Path({str(run)!r})
        job = Job(title="t", module="benchmarks.launch.small_trainer", args=(str(folder), "6", "0.1"),
                  log_folder=folder / "logs", env={{"WORDS": "two words; 'quoted'"}})
        deepspeed.run(job, LaunchConfig(launcher="deepspeed", nodes=2, hostfile={str(hosts)!r}))
    """
    screen = cluster.start(
        "node", "n1", sys.executable, "-c", textwrap.dedent(code), log=folder / "screen.log"
    )
    assert screen.wait(240) == 0, (folder / "screen.log").read_text()
    last = (run / STEPS).read_text().splitlines()[-1]
    assert '"world": 2' in last and '"step": 6' in last


def test_torchrun_started_by_hand_on_two_nodes(cluster: Cluster, folder: Path) -> None:
    run = folder / "run"
    run.mkdir()
    processes = []
    for rank in (0, 1):
        code = f"""
            from pathlib import Path
            from launch.backends import torchrun
            from launch.config import LaunchConfig
            from launch.job import Job
            folder = Path({str(run)!r})
            job = Job(title="t", module="benchmarks.launch.small_trainer", args=(str(folder), "6", "0.1"),
                      log_folder=folder / "logs", node_rank={rank}, can_restart=True)
            torchrun.run(job, LaunchConfig(launcher="torchrun", nodes=2, node_rank={rank},
                                           master_address="n1"))
        """
        log = folder / f"screen-{rank}.log"
        words = ["node", f"n{rank + 1}", sys.executable, "-c", textwrap.dedent(code)]
        processes.append(cluster.start(*words, log=log))
    for rank, process in enumerate(processes):
        assert process.wait(240) == 0, (folder / f"screen-{rank}.log").read_text()
    assert '"world": 2' in (run / STEPS).read_text().splitlines()[-1]


DOCTOR_FAULTS = {
    "none": "4 ranks on n1, n2: met",
    "recipe": "recipe differs: ",
    "code": "code differs: ",
    "folder": "n2 does not see the run folder of rank 0",
    "absent": "the nodes did not meet at n1:",
}


@pytest.mark.parametrize("fault", DOCTOR_FAULTS)
def test_doctor_finds_what_is_wrong_on_two_nodes(
    fault: str, cluster: Cluster, folder: Path
) -> None:
    """`doctor --launch` by hand on each node, where the second one has another recipe, other code,
    or a run folder of its own, or is never started. Oracle: the words on the first one's screen."""
    run, other = folder / "run", folder / "code"
    run.mkdir()
    for name in PACKAGES:
        shutil.copytree(ROOT / name, other / name, ignore=shutil.ignore_patterns("__pycache__"))
    (other / "launch/job.py").open("a").write("# changed\n")
    if fault == "folder":
        cluster("node", "n2", "mount", "-t", "tmpfs", "none", str(run))
    processes = []
    for rank in range(1 if fault == "absent" else 2):
        code = other if (fault, rank) == ("code", 1) else ROOT
        words = ["node", f"n{rank + 1}", "env", "-C", str(code), sys.executable]
        words += ["-m", "pipeline.cli.main", "doctor", "--launch", "toy-tiny", "--run", str(run)]
        words += ["--launcher", "torchrun", "--nodes", "2", "--set", f"launch.node_rank={rank}"]
        words += ["--set", "launch.master_address=n1"]
        words += ["--set", "seed=5"] if (fault, rank) == ("recipe", 1) else []
        processes.append(cluster.start(*words, log=folder / f"screen-{rank}.log"))
    statuses = [process.wait(300) for process in processes]
    if fault == "folder":
        cluster("node", "n2", "umount", str(run))
    screen = (folder / "screen-0.log").read_text()
    assert DOCTOR_FAULTS[fault] in screen
    assert "Traceback" not in screen
    assert statuses[0] == {"none": 0, "absent": 1}.get(fault, 2)
