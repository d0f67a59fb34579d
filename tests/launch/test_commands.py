"""What each launcher would run, without running it. Oracle: the options that torchrun's,
DeepSpeed's and Slurm's documentation give for the case."""

from __future__ import annotations

import base64
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from launch import encoded_rank
from launch.backends import deepspeed, local, slurm, torchrun
from launch.config import LaunchConfig
from launch.environment import launch_environment
from launch.job import Job, UserError
from launch.processes.supervisor import Supervisor
from launch.slurm_config import SlurmConfig

JOB = Job(
    title="toy-pretrain",
    module="pipeline.runner.worker",
    args=("pretrain", "/runs/a b"),
    log_folder=Path("/runs/a b/logs"),
    env={"OMP_NUM_THREADS": "1"},
)
RANK = ["-m", "pipeline.runner.worker", "pretrain", "/runs/a b"]


def test_local() -> None:
    assert local.command(JOB, LaunchConfig()) == [sys.executable, *RANK]


def test_torchrun_on_one_node_meets_on_loopback() -> None:
    """No name has to resolve, and --standalone takes a free port."""
    command = torchrun.command(JOB, LaunchConfig(launcher="torchrun", procs_per_node=4))
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert command[-4:] == RANK
    for option in ("--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=4"):
        assert option in command
    assert not any("rdzv" in part for part in command)


def test_ranks_have_time_for_a_checkpoint_when_torchrun_is_reported_to_stop() -> None:
    """Oracle: torchrun's --help; its own 30 seconds are less than a large checkpoint takes."""
    command = torchrun.command(JOB, LaunchConfig(launcher="torchrun", procs_per_node=4))
    assert "--shutdown-timeout=300" in command[: command.index(JOB.module)]


def test_torchrun_on_several_nodes_meets_at_the_first() -> None:
    config = LaunchConfig(
        launcher="torchrun", nodes=3, node_rank=2, master_address="node0", master_port=1234
    )
    command = torchrun.command(JOB, config)
    for option in (
        "--nnodes=3",
        "--rdzv-conf=join_timeout=1800,last_call_timeout=10,timeout=1800,is_host=0",
        "--rdzv-endpoint=node0:1234",
        "--rdzv-backend=c10d",
        "--rdzv-id=toy-pretrain",
    ):
        assert option in command
    assert "--standalone" not in command


def test_deepspeed_here_and_over_a_hostfile() -> None:
    here = deepspeed.command(JOB, LaunchConfig(launcher="deepspeed", procs_per_node=2))
    assert here[2] == "deepspeed.launcher.launch" and "--master_addr=127.0.0.1" in here
    (world,) = (part.split("=", 1)[1] for part in here if part.startswith("--world_info="))
    assert json.loads(base64.urlsafe_b64decode(world)) == {"localhost": [0, 1]}
    assert here[-4:] == ["--module", *RANK[1:]]
    config = LaunchConfig(launcher="deepspeed", nodes=2, procs_per_node=8, hostfile="hosts")
    there = deepspeed.command(JOB, config)
    assert "--hostfile=hosts" in there and "--num_nodes=2" in there and "--num_gpus=8" in there


def test_deepspeed_on_one_node_meets_at_a_free_port_at_every_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed's own default is 29500 for every run of a machine. Oracle: the ports of two starts
    can be bound, and differ from one that is taken."""
    starts: list[str] = []

    def run(supervisor: Supervisor, command: Callable[[], list[str]]) -> None:
        starts.extend(" ".join(command()) for _ in range(2))

    monkeypatch.setattr(Supervisor, "run", run)
    job = replace(JOB, log_folder=tmp_path / "logs")
    deepspeed.run(job, LaunchConfig(launcher="deepspeed", procs_per_node=2))
    ports = [int(found) for start in starts for found in re.findall(r"--master_port=(\d+)", start)]
    assert len(ports) == 2 and 29500 not in ports
    for port in ports:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


def test_slurm_script() -> None:
    """One torchrun a node, asked to stop before the limit; every path is quoted for bash."""
    config = LaunchConfig(
        launcher="slurm",
        nodes=2,
        procs_per_node=4,
        cpus_per_proc=3,
        gpus_per_node=4,
        partition="long",
        account="vl",
        time_limit_minutes=90,
    )
    script = slurm.script(JOB, config)
    for option in (
        "nodes=2",
        "ntasks-per-node=1",
        "cpus-per-task=12",
        "gpus-per-node=4",
        "partition=long",
        "account=vl",
        "time=90",
        "requeue",
        "signal=B:USR1@120",
    ):
        assert f"#SBATCH --{option}\n" in script
    assert "export OMP_NUM_THREADS=1\n" in script
    assert "--nnodes=2" in script and "--nproc-per-node=4" in script
    assert "-m pipeline.runner.worker pretrain '/runs/a b'" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert slurm.command(JOB, config) == ["sbatch", "--parsable", "job.sh"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"nodes": 0}, "nodes is 0"),
        ({"procs_per_node": -1}, "procs_per_node is -1"),
        ({"time_limit_minutes": 2}, "time_limit_minutes is 2; expected more than"),
        ({"gpus_per_node": -1}, "gpus_per_node is -1"),
        ({"master_port": 0}, "master_port is 0"),
        ({"node_rank": 1}, "node_rank is 1; expected 0 to 0"),
        ({"procs_per_node": 2}, "launcher is local with 2 ranks"),
        ({"launcher": "torchrun", "nodes": 2}, "master_address is null with 2 nodes"),
        ({"launcher": "deepspeed", "nodes": 2}, "hostfile is null with 2 nodes"),
    ],
)
def test_what_cannot_be_launched_is_refused(values: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LaunchConfig(**values)


def test_torchruns_summary_tells_who_was_killed() -> None:
    """The text is torchrun 2.13's own, of a run whose second rank was killed."""
    summary = """
Failures:
[1]:
  time      : 2026-11-22_02:05:22
  host      : localhost
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 8174)
-----------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-22_02:05:22
  host      : localhost
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 8175)  (SIGKILL)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 8175
"""
    assert torchrun.first_killed(summary) == (1, -9)
    assert torchrun.first_killed("no such summary") is None


HOSTILE = ["x\n#SBATCH --uid=0", "a\rb", 'a"b', "a'b", "a`id`", "$(id)", "a#b", "a\\b", "a\tb"]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("key", ["partition", "account", "qos", "dependency", "container_image"])
def test_scheduler_values_that_could_become_lines_or_commands_are_refused(
    key: str, value: str
) -> None:
    with pytest.raises(ValueError, match=f"{key} is .*expected one line"):
        SlurmConfig(**{key: value})
    if key in ("partition", "account"):
        with pytest.raises(ValueError, match=f"{key} is "):
            LaunchConfig(**{key: value})


@pytest.mark.parametrize(
    "key", ["partition", "account", "qos", "mem", "exclude", "container_image"]
)
def test_an_empty_scheduler_value_is_refused(key: str) -> None:
    """As of a shell variable that is not set: `#SBATCH --partition` would take the next word."""
    with pytest.raises(ValueError, match=f"{key} is empty; expected a value, or null"):
        SlurmConfig(**{key: ""})
    assert SlurmConfig(extra={"spread-job": ""}).options["spread-job"] == ""


@pytest.mark.parametrize("line", ["a\nb", "a\rb", "a\0b", "a\x1bb", "a\x85b", "a\u2028b"])
def test_setup_lines_with_control_characters_are_refused(line: str) -> None:
    with pytest.raises(ValueError, match="setup_lines has .*expected one line an item"):
        SlurmConfig(setup_lines=("module load cuda", line))
    assert SlurmConfig(setup_lines=("if true; then\techo \u00fc; fi",)).setup_lines


def test_two_mounts_in_one_item_are_refused() -> None:
    with pytest.raises(ValueError, match="container_mounts has '/a,b:/c'; expected one mount"):
        SlurmConfig(container_image="img.sqsh", container_mounts=("/a,b:/c",))


def test_pyxis_is_given_no_empty_mounts() -> None:
    config = LaunchConfig(launcher="slurm", slurm=SlurmConfig(container_image="img.sqsh"))
    assert "--container-mounts" not in slurm.script(JOB, config)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("nodes", "launch.nodes"),
        ("N", "launch.nodes"),
        ("time", "launch.time_limit_minutes"),
        ("partition", "launch.slurm.partition"),
        ("p", "launch.slurm.partition"),
        ("gres", "launch.slurm.gres"),
        ("--licenses", "without dashes"),
        ("x\ny", "expected a long name"),
        ("G", "expected the long name"),
    ],
)
def test_extra_options_that_boxless_sets_are_refused_with_their_key(
    option: str, words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        SlurmConfig(extra={option: "1"})


def test_names_of_jobs_are_restricted() -> None:
    for title in ("x\ny", "../x", "a b", "a%j", "-x", ""):
        with pytest.raises(UserError, match="expected letters, digits"):
            replace(JOB, title=title)


def test_hostile_text_in_env_and_paths_reaches_bash_as_it_is(tmp_path: Path) -> None:
    """Oracle: bash itself, which runs the script with a srun that prints its environment."""
    nasty = "a b'c\"d$(touch owned)`touch owned`%j\n#SBATCH -x"
    folder = tmp_path / "run %j 'x' \"y\" $HOME"
    folder.mkdir()
    job = replace(JOB, log_folder=folder, env={"NASTY": nasty}, is_elastic=True)
    text = slurm.script(job, LaunchConfig(launcher="slurm"))
    (tmp_path / "srun").write_text('#!/bin/bash\nprintf %s "$NASTY" > "$BOXLESS_LOG_FOLDER/got"\n')
    (tmp_path / "srun").chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": "0"}
    env["SLURM_ARRAY_JOB_ID"] = "7"
    subprocess.run(["bash"], input=text, text=True, env=env, check=True)
    assert (folder / "got").read_text() == nasty
    lines = text.splitlines()
    options = lines[: lines.index("set -u")]  # sbatch reads no further than the first command
    assert all(line.startswith(("#SBATCH --", "#!/bin/bash")) for line in options)
    assert not any("run %j" in line for line in options)


def test_every_slurm_option_stands_in_the_script() -> None:
    options = {
        "partition": "gpu", "account": "vl", "qos": "high", "constraint": "a100&nvlink",
        "reservation": "r1", "gres": "gpu:a100:8", "mem": "480G", "exclude": "node[7,12]",
        "nodelist": "node[1-64]", "mail_user": "a@b.org", "mail_type": "END,FAIL",
        "dependency": "afterok:1",
    }  # fmt: skip
    slurm_config = SlurmConfig(
        **options,
        exclusive=True,
        setup_lines=("module load cuda", "export NCCL_IB_HCA=mlx5"),
        extra={"comment": "a b", "licenses": "x:1"},
    )
    config = LaunchConfig(launcher="slurm", nodes=64, procs_per_node=8, slurm=slurm_config)
    lines = slurm.script(JOB, config).splitlines()
    for key, value in options.items():
        assert f"#SBATCH --{key.replace('_', '-')}={value}" in lines
    for line in ("--exclusive", '"--comment=a b"', "--licenses=x:1"):
        assert f"#SBATCH {line}" in lines
    assert lines.index("module load cuda") > lines.index("set -u")
    (srun,) = (line for line in lines if "srun --" in line)
    assert "--cpus-per-task=8" in srun


@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        ("pyxis", "--container-image=img.sqsh --container-mounts=/runs:/runs python -m"),
        ("apptainer", "apptainer exec --bind /runs:/runs img.sqsh python -m"),
    ],
)
def test_ranks_in_a_container(runtime: str, words: str) -> None:
    slurm_config = SlurmConfig(
        container_image="img.sqsh", container_mounts=("/runs:/runs",), container_runtime=runtime
    )
    assert words in slurm.script(JOB, LaunchConfig(launcher="slurm", slurm=slurm_config))


def test_workers_that_share_shards_are_an_array() -> None:
    config = LaunchConfig(
        launcher="slurm", nodes=4, procs_per_node=8, slurm=SlurmConfig(array_limit=16)
    )
    script = slurm.script(replace(JOB, is_elastic=True), config)
    assert "#SBATCH --array=0-31%16\n" in script and "torch.distributed" not in script
    assert "#SBATCH --requeue\n" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def test_going_on_with_fewer_nodes() -> None:
    config = LaunchConfig(launcher="slurm", nodes=3, min_nodes=2)
    script = slurm.script(JOB, config)
    assert "#SBATCH --nodes=3\n" in script and "--nnodes=2:3" in script and "--no-kill" in script


def test_what_other_launchers_left_is_no_option_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubeflow's PET_* and a rank's variables; the rest of the environment stays."""
    left = {
        "PET_NNODES": "2",
        "RANK": "1",
        "WORLD_SIZE": "4",
        "MASTER_ADDR": "x",
        "LOCAL_RANK": "1",
    }
    for name, value in (left | {"MY_RANK_FILE": "kept"}).items():
        monkeypatch.setenv(name, value)
    env = launch_environment({"RANK": "0"})
    assert env["RANK"] == "0" and env["MY_RANK_FILE"] == "kept"
    assert not set(left) - {"RANK"} & set(env)


def test_a_word_carries_a_rank_through_a_shell(tmp_path: Path) -> None:
    """DeepSpeed joins words with spaces for a remote shell."""
    code = "import os, sys; print(sys.argv[1:], os.environ['NASTY'])"
    (tmp_path / "m.py").write_text(code)
    word = encoded_rank.encode("m", ["a b", "$(id)"], {"NASTY": "x;'\" y"})
    line = f"{sys.executable} -m launch.encoded_rank {word}"
    env = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    out = subprocess.run(["bash", "-c", line], env=env, capture_output=True, text=True)
    assert out.stdout == "['a b', '$(id)'] x;'\" y\n"


@pytest.mark.parametrize(
    "line", ["node1", "node1 slots=x", "-oProxyCommand=x slots=1", "a b slots=1", "$(id) slots=1"]
)
def test_a_hostfile_that_cannot_be_is_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text(f"# hosts\nnode0 slots=2\n{line}\n")
    with pytest.raises(UserError, match="line 3"):
        deepspeed.read_hostfile(path)


@pytest.mark.parametrize("launcher", [torchrun, deepspeed])
def test_a_port_that_is_taken_is_named_before_anything_starts(
    launcher: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: a socket that listens there; the error names port and field, and no log is begun.
    DeepSpeed's launcher meets there on one node too, where the recipe names a port."""
    monkeypatch.setattr(launcher, "_PORT_SECONDS", 0.0)
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        job = replace(JOB, log_folder=tmp_path / "logs")
        if launcher is torchrun:
            config = LaunchConfig(
                launcher="torchrun", nodes=2, master_port=port, master_address="127.0.0.1"
            )
        else:
            config = LaunchConfig(launcher="deepspeed", master_port=port)
        with pytest.raises(UserError, match=rf"port {port} .*launch.master_port"):
            launcher.run(job, config)
    assert not (tmp_path / "logs").exists()
