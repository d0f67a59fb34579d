"""Workers that come to a stage under way, and what `boxless status` says of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.cli.main import main
from pipeline.recipe.dataclass_values import RecipeError
from pipeline.recipe.recipe import Recipe, dump_recipe, load_recipe
from pipeline.runner import run_stages as runner
from pipeline.runner.launch_plan import LaunchOverrides
from pipeline.runner.run_folder import RunError, RunFolder
from pipeline.runner.run_stages import join_work, plan_stage, run_stages
from pipeline.runner.stages.stage_graph import stages_of
from pipeline.runner.stages.state import StageRecord, write_done, write_started
from pipeline.runner.status.status import show_status, status_table
from sharding.coordination import heartbeat
from sharding.coordination.claims import Worker
from sharding.coordination.work_queue import FOLDER

ROOT = Path(__file__).resolve().parents[3]
SMALL = ["ingest.num_train=12", "ingest.num_heldout=4", "ingest.samples_per_shard=4"]


def recipe_of(*overrides: str) -> Recipe:
    return load_recipe("toy", [*SMALL, *overrides])


@pytest.fixture
def under_way(tmp_path: Path) -> RunFolder:
    """A run in which ingest was begun, as a command on another machine leaves it."""
    run, recipe = RunFolder(tmp_path / "run"), recipe_of()
    run.make()
    run.recipe.write_text(dump_recipe(recipe))
    kind = stages_of(recipe)[0]
    shaped_by = plan_stage(run, recipe, kind, look_outside=True).shaped_by
    write_started(run, kind, StageRecord(stage="ingest", shaped_by=shaped_by))
    return run


@pytest.fixture
def lone_worker(under_way: RunFolder) -> Iterator[Worker]:
    """A worker in that run that has claimed a shard and made one of its four inputs."""
    tars = {f"train-{number:06d}.tar": 4 for number in range(3)}
    with Worker(under_way.images, tars, dict.fromkeys(tars, {"a": "b"})) as worker:
        with next(worker.claims()) as claim:
            next(claim.track(range(4)))
            worker._claims.heartbeat.beat()
            yield worker


def test_a_joined_worker_makes_what_is_left_without_a_command(under_way: RunFolder) -> None:
    """Real processes. Oracle: the catalog is there, logs of its own too, and the command that
    comes later has nothing to do but say so."""
    join_work(recipe_of(), under_way, ["ingest"], LaunchOverrides(procs_per_node=2))
    assert (under_way.images / "catalog.json").exists()
    assert not (under_way.images / FOLDER).exists()
    assert not list(under_way.logs("ingest").glob("*.log"))
    (own,) = under_way.logs("ingest").glob("joined-*")
    assert {"rank-0.log", "rank-1.log"} <= {path.name for path in own.iterdir()}
    before = {path: path.stat().st_mtime_ns for path in under_way.images.glob("*.tar*")}
    run_stages(recipe_of(), under_way, ["ingest"], LaunchOverrides(), dry_run=False)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_joined_workers_outlive_the_command(tmp_path: Path) -> None:
    """A command is killed with SIGKILL while a worker has joined. Its own worker is stopped until
    then, so that it cannot end first. Oracle: the joined one ends well and leaves a whole folder;
    the next command completes at once."""
    overrides = ["ingest.num_train=300", "ingest.samples_per_shard=10"]
    run = RunFolder(tmp_path / "run")
    command = [sys.executable, "-m", "pipeline.cli.main", "ingest", "toy", "--run"]
    command += [str(run.root), *(part for value in overrides for part in ("--set", value))]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command_process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
    while not list(run.images.glob("*.tar")):
        assert command_process.poll() is None
        time.sleep(0.01)
    children = Path(f"/proc/{command_process.pid}/task/{command_process.pid}/children")
    workers = [int(pid) for pid in children.read_text().split()]
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    joining = (
        "from pathlib import Path; from pipeline.runner.run_stages import join_work;"
        "from pipeline.runner.launch_plan import LaunchOverrides; from pipeline.recipe.recipe import load_recipe;"
        "from pipeline.runner.run_folder import RunFolder;"
        f"join_work(load_recipe('toy', {overrides}), RunFolder(Path({str(run.root)!r})),"
        " ['ingest'], LaunchOverrides())"
    )
    joined = subprocess.Popen(
        [sys.executable, "-c", joining], cwd=ROOT, env=env, stdout=subprocess.DEVNULL
    )
    while not list(run.logs("ingest").glob("joined-*/rank-0.log")):
        assert joined.poll() is None
        time.sleep(0.01)
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    command_process.kill()
    command_process.wait()
    assert joined.wait(timeout=600) == 0
    assert (run.images / "catalog.json").exists()
    assert not (run.images / "stage.json").exists()
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert "pictures 556" in ended.stdout
    left = {path.name for path in run.images.iterdir() if path.name.startswith(".")}
    assert not left


@pytest.mark.parametrize(
    ("names", "overrides", "error", "words"),
    [
        (["pretrain"], [], RecipeError, "ingest or distill"),
        (["ingest", "distill"], [], RecipeError, "ingest or distill"),
        (["distill"], [], RunError, "distill is not under way in .*: not started yet"),
        (["ingest"], ["ingest.min_side_px=9"], RunError, "ingest.min_side_px was 16, is 9"),
    ],
)
def test_what_cannot_be_joined_is_reported(
    under_way: RunFolder, names: list[str], overrides: list[str], error: type, words: str
) -> None:
    with pytest.raises(error, match=words):
        join_work(recipe_of(*overrides), under_way, names, LaunchOverrides())


def test_nothing_is_left_to_join_in_a_complete_stage(
    under_way: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: no process is launched."""
    run_stages(recipe_of(), under_way, ["ingest"], LaunchOverrides(), dry_run=False)
    monkeypatch.delattr(runner, "launch_joined")
    join_work(recipe_of(), under_way, ["ingest"], LaunchOverrides())
    assert "nothing to join" in capsys.readouterr().out


def test_a_dry_run_starts_nothing_on_the_second_node_or_beside_a_stage(
    under_way: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: no function that launches is there; the node's own number, and the word that makes a
    worker a joined one, stand in the commands."""
    monkeypatch.delattr(runner, "launch_stage")
    monkeypatch.delattr(runner, "launch_joined")
    given = ["--run", str(under_way.root), "--dry-run", *(f"--set={value}" for value in SMALL)]
    second = ["--launcher=torchrun", "--nodes=2", "--set=launch.node_rank=1"]
    second += ["--set=launch.master_address=127.0.0.1"]
    assert main(["pretrain", "toy", *given, *second]) == 0
    said = capsys.readouterr().out
    assert (
        "--nnodes=2" in said and "is_host=0" in said and "pipeline.runner.worker pretrain" in said
    )
    assert main(["ingest", "toy", *given, "--join", "--procs-per-node=2"]) == 0
    said = capsys.readouterr().out.strip()
    assert "--nproc-per-node=2" in said and said.endswith(f"ingest {under_way.root} joined")
    assert not list(under_way.logs("ingest").glob("joined-*"))


def test_status_counts_shards_and_names_workers(
    under_way: RunFolder,
    lone_worker: Worker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No command holds the run here, yet the stage is running: its worker is in this process.
    Oracle: words spelled out."""
    console = Console(width=200, file=open(os.devnull, "w"), record=True)
    console.print(status_table(under_way))
    said = console.export_text()
    assert "running" in said and "shards 0 done, 1 running, 2 not begun" in said
    monkeypatch.setenv("COLUMNS", "200")
    show_status(under_way)
    said = capsys.readouterr().out
    assert f":{os.getpid()}" in said and "1/4" in said and "train-000000.tar" in said
    assert "workers of ingest" in said


def test_status_of_a_stopped_stage(
    under_way: RunFolder, lone_worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is on another machine, dead by its file's time. Oracle: words spelled out."""
    monkeypatch.setattr(heartbeat, "this_machine", lambda: "another machine")
    os.utime(lone_worker._claims.heartbeat.path, (0, 0))
    console = Console(width=200, file=open(os.devnull, "w"), record=True)
    console.print(status_table(under_way))
    said = console.export_text()
    assert "stopped part-way" in said and "0 done, 0 running, 3 not begun" in said


def test_status_tells_the_last_notices_of_training(
    under_way: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: the last five lines of the ranks' own, while training is not complete."""
    under_way.pretrain.mkdir()
    lines = [f"2026-01-01 00:00:0{second} rank 3: no data for 60 s" for second in range(7)]
    (under_way.pretrain / "notices.log").write_text("\n".join(lines) + "\n")
    show_status(under_way)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("pretrain: ")]
    assert said == [f"pretrain: {line}" for line in lines[-5:]]
    kind = next(kind for kind in stages_of(recipe_of()) if kind.name == "pretrain")
    shaped_by = plan_stage(under_way, recipe_of(), kind).shaped_by
    write_done(under_way, kind, StageRecord(stage="pretrain", shaped_by=shaped_by))
    show_status(under_way)
    assert "no data" not in capsys.readouterr().out
