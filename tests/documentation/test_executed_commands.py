"""The cheap commands of the documentation, run as they stand on a small run folder.

Oracle: exit status 0. Paths and placeholders of the pages are laid out in a folder. What starts a
stage, or needs a cluster or a model, is not run here, with a reason."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from report_runs import empty_run, whole_run
from student_folders import picture_file, student_folder
from test_documented_commands import PAGES, commands_of
from view_shards import folder_of, sample

from pipeline.cli.main import main
from pipeline.recipe.recipe import load_recipe
from pipeline.runner.run_folder import RunFolder
from pipeline.runner.run_stages import plan_stage
from pipeline.runner.stages.stage_graph import stages_of
from pipeline.runner.stages.state import StageRecord, write_done

NOT_RUN = {
    "run|ingest|teach|distill|pretrain|finetune|evaluate|retry|ablation": "starts stages: .ci/run",
    "attach|cancel|logs|doctor": "of a cluster or machine: tests/launch, tests/pipeline/cli",
    "serve": "does not end: tests/pipeline/pages/test_serve.py",
    "convert|teacher": "needs a checkpoint: tests/pipeline/cli/test_teacher_commands.py",
    "answer|judge|point": "needs a student of that task: tests/stages/transfer/test_inference.py",
    "export": "tests/pipeline/export",
    "--help|--version": "ends the process: tests/pipeline/cli/test_command_line.py",
}
PLACES = {
    r"^(/shared/run|OLD|RUN|DIR|PATH)$": "runs/toy",
    r"^RECIPE$": "toy",
    r"^STUDENT$": "runs/toy/student",
    r"^PICTURE$": "scene.jpg",
    r"^\[?TEXT\]?$": "a red circle",
}


def _runs(words: list[str]) -> bool:
    """Whether the words are a whole command that is cheap."""
    if "--dry-run" in words:
        return "coco" not in words  # without the pictures that it names
    is_named_only = len(words) == 1
    return not is_named_only and not any(re.fullmatch(names, words[0]) for names in NOT_RUN)


COMMANDS = sorted(
    {
        tuple(words[1:])
        for page in PAGES
        for words in commands_of(page)
        if words[0] == "boxless" and _runs(words[1:])
    }
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages name."""
    root = tmp_path_factory.mktemp("documented")
    run = whole_run(root / "runs" / "toy")
    _record_stages(run)
    student_folder(run.student)
    for name in ("mine", "both", "small"):
        (root / "runs" / name).symlink_to("toy")
    (root / "IMAGES").mkdir()
    picture_file(root / "scene.jpg")
    picture_file(root / "IMAGES" / "beach.jpg")
    folder_of(root / "A", [sample("toy-0"), sample("toy-1")])
    folder_of(root / "B", [sample("toy-2")])
    folder_of(root / "TARS", [sample("toy-3")])
    for path in (root / "TARS").glob("*.json"):
        path.unlink()
    return root


def _record_stages(run: RunFolder) -> None:
    """Records of complete stages, and what `boxless cluster-plan` reads: logs of the ranks, and the
    size of a checkpoint."""
    recipe = load_recipe(run.recipe)
    for kind in stages_of(recipe):
        shaped_by = plan_stage(empty_run(run.root.parent / "unused"), recipe, kind).shaped_by
        record = StageRecord(stage=kind.name, shaped_by=shaped_by, seconds=9, finished="now")
        write_done(run, kind, record)
        logs = run.logs(kind.name)
        logs.mkdir(parents=True, exist_ok=True)
        (logs / "rank-0.log").touch()
    (run.pretrain / "step-3").mkdir(parents=True)
    (run.pretrain / "step-3" / "weights").write_bytes(bytes(5_000))
    (run.pretrain / "latest").write_text("step-3")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_command_runs(
    words: tuple[str, ...],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    assert main(_with_files(list(words), folder)) == 0, capsys.readouterr().err
    if words[:2] == ("recipe", "--schema"):
        assert "properties" in json.loads(capsys.readouterr().out)


def _with_files(words: list[str], folder: Path) -> list[str]:
    """The words with files of `folder` for what stands for one, and an output of their own."""
    words = words[: words.index(">")] if ">" in words else words
    words = [word for word in words if word not in ("...", "...]")]
    for pattern, value in PLACES.items():
        words = [re.sub(pattern, value, word) for word in words]
    at = "IMAGES" if words[0] == "search" else "A"
    words = [at if word == "FOLDER" else word for word in words]
    if words[0] == "repair":
        words = ["repair", "A"]
    if words[0] == "repack":
        words = [f"C{len(list(folder.glob('C*')))}" if word == "C" else word for word in words]
    if "--key" in words:
        words = [word.replace("runs/toy/objects/heldout", "A/train") for word in words]
    return words


def test_most_commands_are_run() -> None:
    """The extraction finds the pages' commands of every kind that can be run."""
    kinds = {words[0] for words in COMMANDS}
    assert kinds >= {"status", "report", "view", "inspect", "verify", "recipe", "sizing"}
    assert kinds >= {"cluster-plan", "index", "repack", "shuffle-quality", "search", "match"}
