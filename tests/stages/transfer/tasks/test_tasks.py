"""The downstream tasks end to end on the toy data set's files: read, trained, scored, saved,
loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrain_fixtures import read_lines, tiny_student, toy_samples, toy_tokenizer, write_objects

from stages.student.processor import StudentProcessor
from stages.student.text.tokenizer import load_tokenizer
from stages.training.engine import join_ranks
from stages.transfer.config import TASK_NAMES, FinetuneConfig
from stages.transfer.example import Example
from stages.transfer.finetuning.finetune_all import finetune_all
from stages.transfer.finetuning.finetune_task import finetune_task, load_for_task, new_words
from stages.transfer.finetuning.predict import predict
from stages.transfer.finetuning.weights_digest import weights_digest
from stages.transfer.fixed_blocks import fixed_threads
from stages.transfer.task_batch import collate
from stages.transfer.task_config import TaskDataConfig
from stages.transfer.task_folder import TaskStudent
from stages.transfer.tasks import TASKS
from stages.transfer.tasks.snli_ve import SnliVeTask
from stages.transfer.toy_tasks.write import write_task_files


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Image shards of toy scenes with their truth, and a student folder."""
    root = tmp_path_factory.mktemp("tasks")
    images = write_objects(root / "images", list(toy_samples(24, 6)))
    student = tiny_student()
    student.save_pretrained(str(root / "student"))
    StudentProcessor.of(student, toy_tokenizer()).save_pretrained(root / "student")
    return images, root / "student"


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """What every launcher sets; DeepSpeed asks for it."""
    monkeypatch.setenv("LOCAL_RANK", "0")


def _run(name: str, world: tuple[Path, Path], out: Path, num_steps: int = 2) -> dict:
    config = FinetuneConfig(
        task=name,
        num_steps=num_steps,
        micro_batch_size=2,
        micro_batches_per_step=1,
        checkpoint_steps=1,
        validate_steps=1,
        zero_stage=1,
    )
    finetune_task(config, seed=0, images=world[0], student=world[1], out=out)
    return json.loads((out / "scores.json").read_text())


def _files(name: str, images: Path, out: Path) -> TaskDataConfig:
    return TaskDataConfig(**write_task_files(name, images, out))


def test_the_table_and_the_recipe_agree() -> None:
    """Oracle: each class's own name, in the same order."""
    assert tuple(TASKS) == TASK_NAMES and all(TASKS[n].name == n for n in TASKS)


@pytest.mark.parametrize("name", TASK_NAMES)
def test_a_task_is_taught_and_used(name: str, world: tuple[Path, Path], tmp_path: Path) -> None:
    """Oracle: scores beside chance within 0 and 1; one prediction an example; and the saved
    student, loaded again, predicts what was written in training to the last digit, in any order of
    groups, in any share, and with 1, 7 or 64 texts beside each other."""
    scores = _run(name, world, tmp_path)
    assert TASKS[name].score_name in scores
    assert all(0 <= entry[key] <= 1 for entry in scores.values() for key in ("value", "chance"))
    lines = [json.loads(x) for x in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    written = {line["id"]: line["prediction"] for line in lines}
    data = TASKS[name].read(_files(name, world[0], tmp_path / "again"), "heldout")
    assert list(written) == [example.id for example in data.examples]
    assert len(list((tmp_path / "submission").iterdir())) == 1
    taught = TaskStudent.load(tmp_path / "student")
    assert type(taught.task) is TASKS[name]
    one = taught.task.predictor(taught.student, taught.head, taught.processor, data.examples)
    for world_size, max_texts in ((1, 1), (2, 7), (3, 64)):
        place = tmp_path / f"ranks-{world_size}"
        shares = {"world_size": world_size, "max_texts": max_texts, "show": False}
        with fixed_threads(0):
            for rank in reversed(range(world_size)):
                found = predict(data.examples, one, place, rank=rank, **shares)
        assert json.loads(json.dumps(found)) == written, (world_size, max_texts)


def test_predictions_go_on_where_they_stopped(tmp_path: Path) -> None:
    """Oracle: a count of what is asked of the network: groups that are there are not asked again,
    whatever the number of ranks; a line cut short is."""
    examples = [Example(id=str(n), images=(Path(f"{n // 2}"),), texts=("t",)) for n in range(10)]
    asked: list[str] = []

    def one(group: tuple[Example, ...]) -> dict[str, str]:
        asked.extend(example.id for example in group)
        return {example.id: f"said {example.id}" for example in group}

    assert predict(examples, one, tmp_path, rank=0, world_size=3, show=False) is None
    [part] = tmp_path.glob("*.jsonl")
    part.write_text(part.read_text()[:-4])
    before = len(asked)
    found = predict(examples, one, tmp_path, show=False)
    assert found == {str(n): f"said {n}" for n in range(10)}
    assert list(found) == [str(n) for n in range(10)]
    assert before == 4 and len(asked) - before == 8  # of two groups, one has lost a line


def test_the_cnn_runs_once_a_picture(
    world: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: pictures that go into the CNN while four questions of each are answered."""
    from stages.student.processor import StudentProcessor as Processor

    data = TASKS["vqa"].read(_files("vqa", world[0], tmp_path), "heldout")
    task = TASKS["vqa"](TASKS["vqa"].prepare(data.examples))
    student, processor = load_for_task(world[1], task)
    assert isinstance(processor, Processor)
    seen: list[int] = []
    whole = type(student.grid).forward
    monkeypatch.setattr(
        type(student.grid),
        "forward",
        lambda self, pixels, *rest: (seen.append(len(pixels)), whole(self, pixels, *rest))[1],
    )
    one = task.predictor(student.eval(), task.make_head(32).eval(), processor, data.examples)
    predict(data.examples, one, tmp_path / "p", show=False)
    assert sum(seen) == len({e.images for e in data.examples}) == len(data.examples) / 4


def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    """Oracle: weights and head of a run of four steps; the other is stopped after its second
    validation and continues."""
    from safetensors.torch import load_file

    import stages.transfer.finetuning.finetune_task as module

    _run("snli_ve", world, tmp_path / "whole", num_steps=4)
    real, calls = module._Run.validate, []

    def stop(self: object, step: int) -> dict:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(step)
        return real(self, step)

    module._Run.validate = stop
    try:
        with pytest.raises(KeyboardInterrupt):
            _run("snli_ve", world, tmp_path / "parts", num_steps=4)
    finally:
        module._Run.validate = real
    _run("snli_ve", world, tmp_path / "parts", num_steps=4)
    for name in ("last/model.safetensors", "last/tasks/snli_ve/head.safetensors"):
        one, two = (load_file(tmp_path / part / name) for part in ("whole", "parts"))
        assert all(torch.equal(one[key], two[key]) for key in one), name


def test_a_run_stopped_while_it_scores_only_scores(
    world: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: a run that was not stopped: the same predictions, scores and metrics. The other is
    stopped at the third group of its last scoring, before any of its checkpoints is due; going on
    it makes no step, and asks for no group that it has."""
    config = FinetuneConfig(task="snli_ve", num_steps=3, micro_batch_size=2,
                            micro_batches_per_step=1, checkpoint_steps=50, validate_steps=50)  # fmt: skip
    asked: list[str] = []
    steps: list[int] = []
    real, stop_after = SnliVeTask.predictor, [3]

    def predictor(self: SnliVeTask, *given: Any) -> Any:
        one = real(self, *given)

        def counting(group: tuple[Example, ...]) -> dict[str, Any]:
            if len(asked) == stop_after[0]:
                raise KeyboardInterrupt
            asked.append(group[0].id)
            return one(group)

        return counting

    def run(out: Path) -> None:
        folders = {"images": world[0], "student": world[1], "out": out}
        finetune_task(config, seed=0, **folders, on_step=steps.append)

    monkeypatch.setattr(SnliVeTask, "predictor", predictor)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts")
    stop_after[0] = -1
    run(tmp_path / "parts")
    assert steps == [1, 2, 3] and len(asked) == len(set(asked)) == 6
    run(tmp_path / "whole")
    for name in ("predictions.jsonl", "scores.json", "best.json"):
        assert (tmp_path / "parts" / name).read_text() == (tmp_path / "whole" / name).read_text()
    lines, others = (
        read_lines(tmp_path / part / "training" / "metrics.jsonl") for part in ("parts", "whole")
    )
    assert [line["step"] for line in lines] == [line["step"] for line in others] == [3]
    assert lines[0].keys() == others[0].keys() and "validation/snli_ve_accuracy" in lines[0]
    assert lines[0]["loss"] == others[0]["loss"]


def test_a_training_file_without_labels_is_refused(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    """Oracle: a ValueError that names the file, before anything is trained."""
    files = _files("snli_ve", world[0], tmp_path / "files")
    train = Path(files.path("", "train"))
    rows = read_lines(train)
    train.write_text(
        "".join(json.dumps({k: v for k, v in r.items() if k != "gold_label"}) + "\n" for r in rows)
    )
    config = FinetuneConfig(task="snli_ve", num_steps=1, data=files)
    with pytest.raises(ValueError, match=rf"finetune.data.train: got {train}, which has no labels"):
        finetune_task(config, seed=0, images=world[0], student=world[1], out=tmp_path / "out")


def test_all_tasks_beside_no_pretraining(
    world: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: each score is that of its own folder, from both starts, and on the screen; a second
    call trains nothing, and counts the steps of both starts."""
    config = FinetuneConfig(task="all", num_steps=1, micro_batch_size=2, micro_batches_per_step=1)
    folders = {"images": world[0], "student": world[1], "out": tmp_path}
    steps: list[int] = []
    found = finetune_all(config, seed=0, **folders, on_step=steps.append, tasks=("nlvr",))
    assert steps == [1, 2]
    for start, key in (("pretrained", "value"), ("not_pretrained", "not_pretrained")):
        own = json.loads((tmp_path / "nlvr" / start / "scores.json").read_text())
        assert {name: entry["value"] for name, entry in own.items()} == {
            name: entry[key] for name, entry in found.items()
        }
    assert json.loads((tmp_path / "scores.json").read_text()) == found
    own = found["nlvr_accuracy"]
    wanted = f"nlvr_accuracy {own['value']:.4f}, not pretrained {own['not_pretrained']:.4f}, chance"
    assert wanted in capsys.readouterr().out
    again = finetune_all(config, seed=0, **folders, on_step=steps.append, tasks=("nlvr",))
    assert again == found and steps == [1, 2]


def test_new_words_are_whole(world: tuple[Path, Path]) -> None:
    """Oracle: the toy tokenizer has no "question"; added it is one piece, whatever its case, and
    the commonest words come first."""
    texts = ("Question one?", "a question two")
    examples = [Example(id=t, images=(), texts=(t,)) for t in texts]
    tokenizer = load_tokenizer(world[1])
    words = new_words(examples, tokenizer, most=1)
    assert words == ["question"] and new_words(examples, tokenizer, most=0) == []
    task = TASKS["vqa"]({"answers": ["a"]})
    student, processor = load_for_task(world[1], task, words=words)
    assert processor.tokenizer.tokenize("Question") == ["question"]
    assert student.embeddings.word_embeddings.num_embeddings == len(processor.tokenizer)


def test_partial_predictions_belong_to_their_weights() -> None:
    """Oracle: the hash changes with a weight, and with a running statistic, and with nothing
    else."""
    join_ranks()
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    before = weights_digest(module)
    assert weights_digest(module.train()) == before == weights_digest(module.eval())
    module[1].running_mean[0] += 1
    after = weights_digest(module)
    with torch.no_grad():
        module[0].weight[0, 0] += 1
    assert len({before, after, weights_digest(module)}) == 3


def test_a_broken_picture_is_named(world: tuple[Path, Path], tmp_path: Path) -> None:
    """Oracle: ValueError with the file's path, whatever its ending says."""
    broken = tmp_path / "dev-0-img0.png"
    broken.write_bytes(b"\xff\xd8\xff no picture")
    example = Example(id="1", images=(broken,), texts=("a",))
    processor = StudentProcessor.from_pretrained(world[1])
    with pytest.raises(ValueError, match="dev-0-img0.png"):
        collate([example], processor, lambda e: e.texts, cell_px=16)
