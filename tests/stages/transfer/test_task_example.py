"""The task in docs/tasks.md is taught as it stands there, and the toy table of tasks is made."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pretrain_fixtures import tiny_student, toy_samples, toy_tokenizer, write_objects

from stages.student.processor import StudentProcessor
from stages.transfer.config import FinetuneConfig
from stages.transfer.example import Example
from stages.transfer.finetuning.finetune_task import finetune_task
from stages.transfer.metrics.classification import accuracy_score
from stages.transfer.readers.records import ExampleCollector, read_json_lines
from stages.transfer.task_config import TaskDataConfig
from stages.transfer.tasks import TASKS
from stages.transfer.tasks.task import LabelTask

DOCS = Path(__file__).resolve().parents[3] / "docs" / "tasks.md"


@pytest.fixture
def student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny student's folder."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    net = tiny_student()
    net.save_pretrained(str(tmp_path / "student"))
    StudentProcessor.of(net, toy_tokenizer()).save_pretrained(tmp_path / "student")
    return tmp_path / "student"


def test_the_task_of_the_docs(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the class, read out of the page, put in the table by one line, is trained and gives
    a score, a prediction an example and a submission."""
    [code] = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    names = {
        "LabelTask": LabelTask,
        "ExampleCollector": ExampleCollector,
        "read_json_lines": read_json_lines,
        "Path": Path,
        "Example": Example,
        "accuracy_score": accuracy_score,
    }
    exec(code, names)
    monkeypatch.setitem(TASKS, "parity", names["ParityTask"])
    monkeypatch.setattr("stages.transfer.config.TASK_NAMES", ("parity",))
    rows = []
    for n, sample in enumerate(toy_samples(24, 6)[:6]):
        (tmp_path / f"{n}.jpg").write_bytes(sample.image)
        label = ("even", "odd")[len(sample.info["truth"]["boxes"]) % 2]
        rows.append(json.dumps({"id": n, "image": f"{n}.jpg", "label": label}))
    lines = tmp_path / "parity.jsonl"
    lines.write_text("\n".join(rows))
    data = TaskDataConfig(
        train=str(lines),
        heldout=str(lines),
        train_images=str(tmp_path),
        heldout_images=str(tmp_path),
    )
    config = FinetuneConfig(task="parity", data=data, num_steps=1, micro_batch_size=2)
    finetune_task(config, seed=0, images=tmp_path, student=student, out=tmp_path / "out")
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["parity_accuracy"]["num"] == 6
    assert len((tmp_path / "out/submission/parity.csv").read_text().splitlines()) == 6


def test_the_toy_table(student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: a line for the score with three numbers, as the two runs' files say."""
    from benchmarks.transfer.toy_tasks import main

    images = write_objects(tmp_path / "images", list(toy_samples(24, 6)))
    given = ["--student", f"own={student}", "--images", str(images), "--out", str(tmp_path / "t")]
    assert main([*given, "--tasks", "snli_ve", "--seeds", "1", "--num-steps", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    line = lines[-5].split()  # before a blank line and a table of one task
    folder = tmp_path / "t" / "snli_ve"
    values = [
        json.loads((folder / f"{start}-0" / "scores.json").read_text())["snli_ve_accuracy"]["value"]
        for start in ("own", "not_pretrained")
    ]
    assert line[:3] == ["snli_ve", "0", "snli_ve_accuracy"]
    assert line[3:5] == [f"{100 * value:.1f}" for value in values]
    one, other = (f"{100 * v:.1f} ({100 * v:.1f} to {100 * v:.1f})" for v in values)
    above = int(values[0] > values[1])
    assert lines[-1].endswith(f"| {one} | {other} | {above} of 1 |")
