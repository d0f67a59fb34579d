"""`boxless run RECIPE --to STAGE`."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli.main import main
from pipeline.recipe.recipe import Recipe


@pytest.mark.parametrize(
    ("given", "names", "task"),
    [
        (["run", "toy", "--to", "distill"], ["ingest", "teach", "distill"], None),
        (["run", "toy", "--to", "finetune"], ["ingest", "teach", "distill", "pretrain", "finetune"], "all"),
        (["run", "toy", "--to", "finetune", "--set", "finetune.task=vqa"],
         ["ingest", "teach", "distill", "pretrain", "finetune"], "vqa"),
        (["run", "nlvr", "--to", "finetune", "--set", "ingest.root=/tmp"],
         ["ingest", "teach", "distill", "pretrain", "finetune"], "nlvr"),
        (["finetune", "toy"], ["finetune"], "all"),
        (["run", "toy"], ["ingest", "teach", "distill", "pretrain", "finetune", "evaluate"], None),
    ],
)  # fmt: skip
def test_stages_end_where_asked(
    given: list[str],
    names: list[str],
    task: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Oracle: by hand; asked to end with finetune, a recipe of toy data without a task takes
    all, and other recipes stay as they are."""
    asked: list[tuple[list[str], str | None]] = []

    def run_stages(
        recipe: Recipe, run: object, stages: list[str], *rest: object, **_: object
    ) -> None:
        asked.append((stages, recipe.finetune.task))

    monkeypatch.setattr("pipeline.runner.run_stages.run_stages", run_stages)
    assert main([*given, "--run", str(tmp_path), "--dry-run"]) == 0
    assert asked == [(names, task)]
