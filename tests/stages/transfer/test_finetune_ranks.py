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
from stages.transfer.config import TASK_NAMES
from stages.transfer.finetuning.predict import predict, read_partial
from stages.transfer.fixed_blocks import fixed_threads
from stages.transfer.task_config import TaskDataConfig
from stages.transfer.task_folder import TaskStudent
from stages.transfer.tasks import TASKS
from stages.transfer.toy_tasks.write import write_task_files

SCRIPT = Path(__file__).parents[1] / "fixtures" / "finetune_ranks.py"
needs_time = pytest.mark.skipif(
    "RANKS_TESTS" not in os.environ, reason="takes minutes: make ranks-test"
)
CONFIG = {"num_steps": 2, "micro_batch_size": 2, "micro_batches_per_step": 2, "checkpoint_steps": 1,
          "validate_steps": 2}  # fmt: skip


def _torchrun(folder: Path, world_size: int, die_in: str | None) -> int:
    job = {"config": CONFIG, "tasks": TASK_NAMES, "die_in": die_in,
           **{name: str(folder / name) for name in ("images", "student", "out")}}  # fmt: skip
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
def test_killed_and_continued_on_another_number_of_ranks(tmp_path: Path) -> None:
    """Every task is killed while it scores, on two ranks or on three, and continued on three or on
    two. Oracle: one process with the saved student, with 1, 7 and 64 texts beside each other: the
    same predictions to the last digit, of all examples; of those that the killed run wrote, each as
    it was."""
    write_objects(tmp_path / "images", list(toy_samples(24, 12)))
    student = tiny_student()
    student.save_pretrained(str(tmp_path / "student"))
    StudentProcessor.of(student, toy_tokenizer()).save_pretrained(tmp_path / "student")
    before: dict[str, dict] = {}
    for number, name in enumerate(TASK_NAMES):
        assert _torchrun(tmp_path, 2 + number % 2, die_in=name) != 0
        assert not (tmp_path / "out" / name / "scores.json").exists()
        [place] = (tmp_path / "out" / name / "predictions").iterdir()
        before[name] = read_partial(place)
    assert _torchrun(tmp_path, 2 + len(TASK_NAMES) % 2, die_in=None) == 0
    for name in TASK_NAMES:
        out = tmp_path / "out" / name
        lines = (out / "predictions.jsonl").read_text().splitlines()
        written = {entry["id"]: entry["prediction"] for entry in map(json.loads, lines)}
        assert 0 < len(before[name]) < len(written), name
        assert before[name].items() <= written.items(), name
        taught = TaskStudent.load(out / "student")
        files = TaskDataConfig(**write_task_files(name, tmp_path / "images", tmp_path / name))
        examples = TASKS[name].read(files, "heldout").examples
        assert list(written) == [example.id for example in examples], name
        one = taught.task.predictor(taught.student, taught.head, taught.processor, examples)
        for max_texts in (1, 7, 64):
            place = tmp_path / "alone" / name / str(max_texts)
            with fixed_threads(0):
                alone = predict(examples, one, place, show=False, max_texts=max_texts)
            assert json.loads(json.dumps(alone)) == written, (name, max_texts)
