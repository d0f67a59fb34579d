"""Finetuning under the real torchrun: killed in the middle of predicting, continued on another
number of ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pretrain_fixtures import tiny_student, toy_samples, toy_tokenizer, write_objects

from stages.student.processor import StudentProcessor
from stages.transfer.finetuning.predict import predict
from stages.transfer.task_config import TaskDataConfig
from stages.transfer.task_folder import TaskStudent
from stages.transfer.tasks import TASKS
from stages.transfer.toy_tasks.write import write_task_files

SCRIPT = Path(__file__).parents[1] / "fixtures" / "finetune_ranks.py"
needs_time = pytest.mark.skipif(
    "RANKS_TESTS" not in os.environ, reason="takes minutes: make ranks-test"
)
CONFIG = {"task": "snli_ve", "num_steps": 2, "micro_batch_size": 2, "micro_batches_per_step": 2,
          "checkpoint_steps": 1, "validate_steps": 2}  # fmt: skip


def _torchrun(folder: Path, world_size: int, die_after: int | None, out: str = "out") -> int:
    job = {"config": CONFIG, "images": str(folder / "images"), "student": str(folder / "student"),
           "out": str(folder / out), "die_after": die_after}  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
    return subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), str(folder / "job.json")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=600,
    ).returncode


@needs_time
def test_killed_on_two_ranks_and_continued_on_three(tmp_path: Path) -> None:
    """Oracle: two ranks that nobody killed: the same predictions to the last digit, as the killed
    run had trained, and only its scoring is shared out again; and one process with the saved
    student, group by group."""
    write_objects(tmp_path / "images", list(toy_samples(24, 6)))
    student = tiny_student()
    student.save_pretrained(str(tmp_path / "student"))
    StudentProcessor.of(student, toy_tokenizer()).save_pretrained(tmp_path / "student")
    assert _torchrun(tmp_path, 2, die_after=1) != 0
    assert not (tmp_path / "out" / "scores.json").exists()
    assert _torchrun(tmp_path, 3, die_after=None) == 0
    assert _torchrun(tmp_path, 2, die_after=None, out="calm") == 0
    one, other = (tmp_path / out / "predictions.jsonl" for out in ("out", "calm"))
    assert one.read_text() == other.read_text()
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    written = {entry["id"]: entry["prediction"] for entry in map(json.loads, lines)}
    taught = TaskStudent.load(tmp_path / "out" / "student")
    files = TaskDataConfig(**write_task_files("snli_ve", tmp_path / "images", tmp_path / "files"))
    examples = TASKS["snli_ve"].read(files, "heldout").examples
    one = taught.task.predictor(taught.student, taught.head, taught.processor, examples)
    alone = predict(examples, one, tmp_path / "alone", show=False)
    assert json.loads(json.dumps(alone)) == written
