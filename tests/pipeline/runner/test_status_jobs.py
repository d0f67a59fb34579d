"""What `boxless status` says of jobs: the state of a Slurm job, goodput and lost time by cause.
Oracle: seconds and states that were written down by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.backends import slurm_queue
from launch.paths import JobPaths
from pipeline.recipe.recipe import dump_recipe, load_recipe
from pipeline.runner.run_folder import RunFolder
from pipeline.runner.status.goodput import goodput_lines, read_goodput
from pipeline.runner.status.status import show_status


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path)
    run.make()
    run.recipe.write_text(dump_recipe(load_recipe("toy-tiny")))
    run.logs("pretrain").mkdir(parents=True, exist_ok=True)
    return run


def test_time_is_lost_to_restarts_between_starts_and_in_starts(run: RunFolder) -> None:
    """Four starts of 1,000 s: one ends by a signal, one by the loss of its node, the third restarts
    in its allocation and fails, the fourth restarts before its first step, and no second
    counts twice. 400 steps of a second are useful."""
    events = [
        (0, "start"), (20, "first step"), (100, "stop"),
        (160, "start"), (190, "first step"), (300, "step"),
        (450, "start"), (460, "first step"), (500, "restart"),
        (507, "recovered"), (600, "failure"),
        (700, "start"), (725, "restart"), (730, "recovered"), (730, "first step"), (1000, "end"),
    ]  # fmt: skip
    details = {"restart": {"cause": "killed"}, "failure": {"cause": "disk full"}}
    details["recovered"] = {"cause": "killed", "lost_seconds": 7.0}  # type: ignore[dict-item]
    with JobPaths(run.logs("pretrain")).events.open("w") as file:
        for seconds, kind in events:
            for node in (0, 1):
                event = {"time_seconds": 5000 + seconds, "event": kind, "node": node}
                file.write(json.dumps(event | details.get(kind, {})) + "\n")
    run.pretrain.mkdir(exist_ok=True)
    lines = [json.dumps({"step": step, "step_seconds": 1.0}) for step in (1, 200, 400)]
    (run.pretrain / "metrics.jsonl").write_text("\n".join(lines))
    goodput = read_goodput(run)
    assert goodput is not None
    assert (goodput.share, goodput.starts, goodput.restarts) == (0.4, 4, 2)
    assert goodput.lost_seconds == {
        "starting, up to the first step": 20 + 30 + 10 + (30 - 7),
        "between starts, after a signal: the time limit, preemption, a cancel, a lost node": 60,
        "between starts, after the loss of the first node or its agent": 150,
        "killed": 7.0 + 7.0,
        "between starts, after a failure: disk full": 100,
    }
    assert goodput_lines(goodput)[1].startswith("  lost 150 s: between starts, after the loss of")


def test_the_state_of_a_slurm_job_is_shown(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job that waits, an array, and one that the controller has forgotten; by one question."""
    asked = []

    def answer(query: list[str]) -> str:
        asked.append(query)
        return "12|PENDING|Resources\n7|RUNNING|None\n7|RUNNING|None\n7|PENDING|Priority\n"

    monkeypatch.setattr(slurm_queue, "_query", answer)
    for stage, job_id in (("pretrain", "12"), ("distill", "7"), ("ingest", "3")):
        paths = JobPaths(run.logs(stage))
        paths.folder.mkdir(parents=True, exist_ok=True)
        paths.submitted.write_text(json.dumps({"job_id": job_id}))
    show_status(run)
    said = capsys.readouterr().out
    assert "pretrain: Slurm job 12, PENDING (Resources)" in said
    assert "distill: Slurm job 7, 2 RUNNING, 1 PENDING (Priority)" in said
    assert "ingest: Slurm job 3, which this machine's Slurm does not know" in said
    assert len(asked) == 1
