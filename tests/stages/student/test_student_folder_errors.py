"""Student folders that are not whole. Oracle: by hand, the file and what to do in the message."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pretrain_fixtures import tiny_student, toy_tokenizer
from safetensors.torch import load_file, save_file

from boxless.errors import BoxlessError
from stages.student.network import Student
from stages.student.processor import StudentProcessor
from stages.transfer.task_folder import TaskStudent, save_head
from stages.transfer.tasks import TASKS

WEIGHTS, HEAD = "model.safetensors", "tasks/snli_ve/head.safetensors"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student folder with a task's head."""
    folder, student = tmp_path_factory.mktemp("folder") / "student", tiny_student()
    student.save_pretrained(folder)
    StudentProcessor.of(student, toy_tokenizer()).save_pretrained(folder)
    task = TASKS["snli_ve"]({})
    save_head(folder, task, task.make_head(student.config.bert["hidden_size"]).state_dict())
    return folder


@pytest.fixture()
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to damage."""
    return Path(shutil.copytree(sound, tmp_path / "student"))


def _remove(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _list(path: Path) -> None:
    path.write_text("[1]")


def _latin(path: Path) -> None:
    path.write_bytes(b"\xff\xfe{}")


@pytest.mark.parametrize(
    ("file", "damages"),
    [
        ("config.json", [_remove, _cut, _empty, _list, _latin]),
        ("preprocessor_config.json", [_remove, _cut, _empty, _list, _latin]),
        ("tokenizer.json", [_remove, _cut, _empty, _list, _latin]),
        ("tokenizer_config.json", [_cut, _empty, _list, _latin]),
        (WEIGHTS, [_cut, _empty]),
        ("tasks/snli_ve/task.json", [_cut, _empty, _list, _latin]),
        (HEAD, [_cut, _empty]),
    ],
)
def test_a_damaged_file_is_named(
    file: str, damages: list[Callable[[Path], None]], sound: Path, tmp_path: Path
) -> None:
    """Each file removed where it must be there, cut, emptied, of another kind, or not UTF-8."""
    for damage in damages:
        folder = Path(shutil.copytree(sound, tmp_path / damage.__name__))
        damage(folder / file)
        with pytest.raises(BoxlessError, match=rf"(?s){damage.__name__}.*{Path(file).name}"):
            TaskStudent.load(folder)


def test_weights_that_do_not_fit_are_refused(folder: Path) -> None:
    """Some missing, which would be random numbers, and those of another size."""
    weights = load_file(folder / WEIGHTS)
    first = weights.pop("fusion.layer.0.output.dense.weight")
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(BoxlessError, match=r"no weights of 1 parameters \(fusion\.layer\.0"):
        Student.from_pretrained(folder)
    weights["fusion.layer.0.output.dense.weight"] = torch.zeros(len(first), 3)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(BoxlessError, match="weights of other sizes than config.json says"):
        Student.from_pretrained(folder)


@pytest.mark.parametrize(
    ("file", "number"), [(WEIGHTS, torch.nan), (WEIGHTS, torch.inf), (HEAD, torch.nan)]
)
def test_weights_that_are_not_finite_are_refused(file: str, number: float, folder: Path) -> None:
    """Every answer would be NaN, without a word."""
    weights = load_file(folder / file)
    name = sorted(weights)[0]
    weights[name].view(-1)[0] = number
    save_file(weights, folder / file, metadata={"format": "pt"})
    place = folder if file == WEIGHTS else folder / file
    with pytest.raises(BoxlessError, match=rf"{place}: got numbers that are not finite in {name}"):
        TaskStudent.load(folder)


def test_parts_that_the_caller_adds_may_be_new(sound: Path) -> None:
    """As in transformers: a value of the config among the arguments."""
    assert Student.from_pretrained(sound, itc_size=8).contrastive_head is not None
    student, info = Student.from_pretrained(str(sound), output_loading_info=True)
    assert isinstance(student, Student) and not info["missing_keys"]


@pytest.mark.parametrize("name", ["none", "/none/student", "{0}/none", "~/none", "", None])
def test_a_folder_that_is_not_there_is_named(
    name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: transformers would ask a hub for it, again and again where there is no network."""
    monkeypatch.chdir(tmp_path)
    given = None if name is None else name.format(tmp_path.name)
    (tmp_path / tmp_path.name).mkdir()
    expected = "expected (the folder|that) of a student, as RUN/student"
    with pytest.raises(BoxlessError, match=expected):
        Student.from_pretrained(given)


def test_a_home_is_expanded(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in every path of a recipe."""
    monkeypatch.setenv("HOME", str(sound.parent))
    assert Student.from_pretrained("~/student").config.model_type == "boxless-student"
    assert StudentProcessor.from_pretrained("~/student").max_tokens


def test_a_neck_and_sizes_that_cannot_be_are_refused(folder: Path) -> None:
    """Of another version, or below 1."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"neck": {"kind": "later"}}))
    with pytest.raises(BoxlessError, match=re.escape("neck in config.json: got {'kind': 'later'}")):
        Student.from_pretrained(folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"pad_px": 0}))
    with pytest.raises(BoxlessError, match="no whole number above 0 for pad_px"):
        StudentProcessor.from_pretrained(folder)
