"""The plan of a large run. Oracle: its arithmetic, done here by hand for round numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.cli.main import main
from pipeline.recipe.recipe import dump_recipe, load_recipe
from pipeline.runner.cluster_plan import ClusterPlan, Measured
from pipeline.runner.run_folder import RunError, RunFolder
from pipeline.runner.stages.stage_graph import stages_of
from pipeline.runner.stages.state import StageRecord, write_done

MEASURED = Measured(
    rates={"ingest": 50.0, "distill": 5.0, "pretrain": 20.0},
    image_bytes=100_000.0,
    object_bytes=120_000.0,
    weight_bytes=400_000_000,
    checkpoint_bytes=1_200_000_000,
)


def plan_of(**changes: object) -> ClusterPlan:
    values: dict = {
        "measured": MEASURED,
        "num_pictures": 4_000_000,
        "nodes": 10,
        "procs_per_node": 10,
        "epochs": 10.0,
        "micro_batch_size": 40,
        "checkpoint_steps": 100,
        "keep_checkpoints": 2,
    }
    return ClusterPlan(**values | changes)


def test_time_storage_network_and_failures() -> None:
    """100 ranks: 4 M pictures at 5 a second and rank are 8,000 s; 10 epochs at 20 are 20,000 s in
    10,000 steps of 4,000 samples, 2 s each."""
    plan = plan_of()
    assert (plan.num_ranks, plan.num_steps, plan.step_seconds) == (100, 10_000, 2.0)
    assert [plan.seconds(s) for s in ("ingest", "distill", "pretrain")] == [800, 8_000, 20_000]
    text = "\n".join(plan.lines())
    for words in (
        "2 h 13 min  at 5 pictures/s a rank (measured)",
        "image shards 400 GB (100 kB a picture), object shards 480 GB",
        "2 checkpoints 2.4 GB",
        "reads 24 MB/s a node, 240 MB/s in all",  # 20 pictures x 10 ranks x 120 kB
        "gradients 7.92 GB a step and node, 31.7 Gbit/s",  # 2 x 0.99 x 0.4 GB x 10, in 2 s
        "every 100 steps, 3 min 20 s: 6 MB/s on average",
        "one in 80.9 h of 100 GPUs",  # 7.9 x 1024 / 100
    ):
        assert words in text, (words, text)


def test_rates_and_pictures_of_ones_own() -> None:
    plan = plan_of(rates={"distill": 50.0}, measured=MEASURED.with_pictures_of(200_000.0))
    assert plan.seconds("distill") == 800
    assert plan.measured.object_bytes == 220_000
    assert "at 50 pictures/s a rank (given)" in "\n".join(plan.lines())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nodes": 0}, "nodes is 0; expected more than 0"),
        ({"rates": {"teach": 1.0}}, "the rate of teach is 1.0; expected"),
        ({"rates": {"ingest": 0.0}}, "the rate of ingest is 0.0"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(RunError, match=words):
        plan_of(**changes)


def test_a_run_that_is_not_complete_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(dump_recipe(load_recipe("toy-tiny")))
    assert main(["cluster-plan", str(tmp_path)]) == 2
    assert "ingest is not complete in" in capsys.readouterr().err


def test_a_rate_that_is_no_number_is_refused(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cluster-plan", str(finished_run), "--rate", "distill=fast"]) == 2
    assert "expected STAGE=R" in capsys.readouterr().err


def test_what_a_run_measured(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """100 pictures in 20 s by two workers are 2.5 a second of one; the median report of two ranks
    is 30, so one makes 15."""
    assert main(["cluster-plan", str(finished_run), "--nodes", "1", "--procs-per-node", "1"]) == 0
    said = capsys.readouterr().out
    for words in (
        "at 2.5 pictures/s a rank (measured)",
        "at 15 pictures/s a rank (measured)",
        "image shards 4.2 GB (1 kB a picture), object shards 8.4 GB (2 kB a picture)",
        "checkpoints 5 kB every",
    ):
        assert words in said, said


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    """What the stages leave, as far as the plan reads it."""
    recipe = load_recipe("toy-tiny")
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    kinds = {kind.name: kind for kind in stages_of(recipe)}
    shard = {"tar": "train-000000.tar", "split": "train", "manifest_sha256": "0" * 64}
    shard |= {"num_input": 100, "num_ok": 100, "num_failed": 0}
    for folder, stage_name, num_bytes in (
        ("images", "ingest", 100_000),
        ("objects", "distill", 200_000),
        ("pretrain", "pretrain", 0),
    ):
        (tmp_path / folder).mkdir()
        record = StageRecord(stage=stage_name, shaped_by={}, seconds=20.0, finished="now")
        write_done(RunFolder(tmp_path), kinds[stage_name], record)
        logs = tmp_path / "logs" / stage_name
        logs.mkdir(parents=True)
        for rank in (0, 1):
            (logs / f"rank-{rank}.log").touch()
        if num_bytes:
            catalog = {"schema": "boxless/catalog/1", "kind": folder, "about": {}}
            catalog["shards"] = [shard | {"bytes": num_bytes}]
            (tmp_path / folder / "catalog.json").write_text(json.dumps(catalog))
    pretrain, student = tmp_path / "pretrain", tmp_path / "student"
    reports = [
        json.dumps({"step": s, "pictures_per_second": r}) for s, r in ((1, 9), (2, 30), (3, 31))
    ]
    cut_by_a_kill = '\n{"step": 4, "pictures_per_se'
    (pretrain / "metrics.jsonl").write_text("\n".join(reports) + cut_by_a_kill)
    (pretrain / "step-3").mkdir()
    (pretrain / "step-3/weights").write_bytes(bytes(5_000))
    (pretrain / "latest").write_text("step-3")
    student.mkdir()
    (student / "model.safetensors").write_bytes(bytes(4_000))
    return tmp_path
