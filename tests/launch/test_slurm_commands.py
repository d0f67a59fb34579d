"""`boxless attach | cancel | logs | pretrain` about jobs of a real Slurm. Oracle: what the ranks of
tests.launch.slurm_cluster print and write, and Slurm's own word on a job."""

from __future__ import annotations

import json
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from launch.backends import slurm
from launch.job import LaunchError
from launch.paths import JobPaths
from pipeline.cli.main import main
from pipeline.recipe.recipe import dump_recipe, load_recipe
from pipeline.runner import run_folder
from pipeline.runner.run_folder import RunError, RunFolder
from tests.launch.slurm_cluster import ask, make_job, needs_slurm, wait_until

OPTIONS = {
    "partition": "gpu",
    "account": "vl",
    "qos": "normal",
    "constraint": "a100&nvlink",
    "exclusive": "true",
    "gres": "gpu:a100:8",
    "mem": "480G",
    "exclude": "gpu[65-66]",
    "mail_user": "a@b.org",
    "mail_type": "END,FAIL",
    "dependency": "singleton",
    "array_limit": "100",
    "setup_lines": '["module load cuda/12.8", "export NCCL_IB_HCA=mlx5"]',
    "container_image": "/shared/boxless.sqsh",
    "container_mounts": '["/shared:/shared"]',
    "container_runtime": "apptainer",
    "container_python": "/opt/venv/bin/python",
    "extra": '{comment: "two words", licenses: "data:1", nice: "10"}',
}


@pytest.fixture
def job_of_a_run(cluster: Path, tmp_path: Path) -> RunFolder:
    """A run whose pretraining is a running job: two ranks that wait to be asked to stop."""
    run = RunFolder(tmp_path / "run")
    run.make()
    run.recipe.write_text(dump_recipe(load_recipe("toy-tiny")))
    job, config = make_job(tmp_path, "wait")
    job = replace(job, log_folder=run.logs("pretrain"))

    def follow() -> None:
        try:
            slurm.run(job, config)
        except LaunchError:
            pass  # it was cancelled, as far as the command that follows it can know

    follower = threading.Thread(target=follow)
    follower.start()
    paths = [tmp_path / f"rank-{rank}.txt" for rank in (0, 1)]
    wait_until(lambda: all(p.exists() and p.read_text() for p in paths), "no ranks")
    yield run
    subprocess.run(["scancel", str(slurm.submitted_job(job.paths))], check=False)
    follower.join()


@needs_slurm
def test_logs_attach_and_cancel(
    job_of_a_run: RunFolder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The log of each rank; a second trainer is refused, by any launcher, and leaves the job as it
    is; what the job printed from its beginning; an end after which both ranks have saved, and
    nothing more to attach to or to cancel."""
    run = str(job_of_a_run.root)
    job_id = str(slurm.submitted_job(JobPaths(job_of_a_run.logs("pretrain"))))
    capfd.readouterr()
    assert main(["logs", run, "--rank", "1"]) == 0
    assert "out of rank 1" in capfd.readouterr().out
    assert main(["logs", run, "--rank", "7"]) == 2
    assert "rank-0.log, rank-1.log" in capfd.readouterr().err

    for launcher in ("local", "slurm"):
        assert main(["pretrain", "toy-tiny", "--run", run, "--launcher", launcher]) == 2
        said = capfd.readouterr().err
        assert f"the Slurm job {job_id} of pretrain is pending or running in" in said
        assert "boxless attach" in said and "boxless cancel" in said

    said = []

    def is_attached() -> bool:
        said.append(capfd.readouterr().out)
        return f"pretrain: Slurm job {job_id}\n" in "".join(said)

    attached = threading.Thread(target=main, args=(["attach", run],))
    attached.start()
    wait_until(is_attached, "nothing to attach to")
    assert main(["cancel", run]) == 0
    attached.join(180)
    assert not attached.is_alive()
    text = "".join(said) + capfd.readouterr().out
    assert "out of rank 0\n" in text.partition("pretrain: Slurm job")[2]
    assert f"pretrain: Slurm job {job_id} was cancelled" in text
    assert all((tmp_path / f"saved-{rank}.txt").exists() for rank in (0, 1))
    for command in ("attach", "cancel"):
        assert main([command, run]) == 1
        assert "is pending or running" in capfd.readouterr().out


def test_a_second_first_rank_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two jobs that know nothing of each other (two clusters, one shared folder): the lock that the
    first rank of a stage holds keeps the second job's from writing, and another stage's does
    not."""
    monkeypatch.setattr(run_folder, "_WAIT_FOR_RANKS_SECONDS", 1.0)
    run, again = RunFolder(tmp_path), RunFolder(tmp_path)
    with run.sole_writer("pretrain"):
        with pytest.raises(RunError, match="another pretrain is running in"):
            with again.sole_writer("pretrain"):
                raise AssertionError("two writers")
        with again.sole_writer("finetune"):
            pass
    with again.sole_writer("pretrain"):
        pass


@needs_slurm
@pytest.mark.parametrize("stage", ["pretrain", "ingest"])
def test_sbatch_takes_the_script_of_64_nodes_with_every_option(
    stage: str, cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--dry-run` prints a script, and nothing is written. Oracle: sbatch --test-only, which names
    the nodes that the controller would take: all 64 for pretrain, one a task for ingest."""
    ask(["scontrol", "create", "reservation", "ReservationName=r1", "StartTime=now", "users=root",
         "Duration=UNLIMITED", "Nodes=gpu[1-64]", "Flags=IGNORE_JOBS"])  # fmt: skip
    words = [stage, "toy-tiny", "--run", str(tmp_path / "run"), "--dry-run", "--launcher", "slurm"]
    words += ["--nodes", "64", "--procs-per-node", "8", "--set", "launch.cpus_per_proc=12"]
    words += ["--set", "launch.env={NCCL_DEBUG: WARN}", "--set", "launch.min_nodes=60"]
    for key, value in (OPTIONS | {"reservation": "r1"}).items():
        words += ["--set", f"launch.slurm.{key}={value}"]
    assert main(words) == 0
    assert not (tmp_path / "run").exists()
    said = capsys.readouterr().out
    script = said[said.index("#!/bin/bash") : said.index("\n# job.sh in ")]
    checked = ["sbatch", "--test-only"]
    answer = subprocess.run(checked, input=script, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    where = "on nodes gpu[1-64] in" if stage == "pretrain" else "on nodes gpu1 in"
    assert where in answer.stderr, answer.stderr


@needs_slurm
def test_a_job_in_a_folder_with_a_hostile_name(
    cluster: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Blanks, Slurm's own %j, quotes, a command and a line break: the job runs, logs stand there,
    and what the first rank says is shown."""
    folder = tmp_path / "run %j 'x' \"y\" $(touch owned) #\n#SBATCH --uid=0"
    folder.mkdir()
    job, config = make_job(tmp_path, "end")
    slurm.run(replace(job, log_folder=folder / "logs"), config)
    assert "out of rank 0\nall done\n" in capfd.readouterr().out
    assert "out of rank 1" in (folder / "logs/rank-1.log").read_text()
    assert json.loads((folder / "logs/job.json").read_text())["job_id"].isdigit()
    assert not list(tmp_path.rglob("owned")) and not Path("owned").exists()
