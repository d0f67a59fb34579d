"""Using a student by one call each, and by command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from pretrain_fixtures import tiny_student, toy_samples, toy_tokenizer
from safetensors.torch import load_file

from boxless.errors import BoxlessError
from pipeline.cli.main import main
from stages.student.processor import StudentProcessor
from stages.transfer import inference
from stages.transfer.finetuning.finetune_task import load_for_task
from stages.transfer.loaded_student import LoadedStudent
from stages.transfer.predictor import Predictor
from stages.transfer.task_folder import save_head
from stages.transfer.tasks import TASKS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that knows VQA and SNLI-VE, and three pictures in `pictures`."""
    root = tmp_path_factory.mktemp("use")
    student = tiny_student()
    student.save_pretrained(str(root / "student"))
    StudentProcessor.of(student, toy_tokenizer()).save_pretrained(root / "student")
    for name, state in (("vqa", {"answers": ["red", "blue"]}), ("snli_ve", {})):
        task = TASKS[name](state)
        save_head(root / "student", task, task.make_head(32).state_dict())
    (root / "pictures").mkdir()
    for n, sample in enumerate(toy_samples(24, 6)[:3]):
        (root / "pictures" / f"{n}.jpg").write_bytes(sample.image)
    return root


def test_a_student_saved_in_16_bits_is_scored_and_finetuned_in_float32(
    folder: Path, tmp_path: Path
) -> None:
    """Updates below bfloat16's last digit would be lost. Oracle: the dtype of every weight, of a
    folder whose file holds bfloat16."""
    student, out = tiny_student().to(torch.bfloat16), tmp_path / "student"
    student.save_pretrained(str(out))
    StudentProcessor.of(student, toy_tokenizer()).save_pretrained(out)
    assert {v.dtype for v in load_file(out / "model.safetensors").values()} >= {torch.bfloat16}
    finetuned, _ = load_for_task(out, TASKS["vqa"]({"answers": ["red", "blue"]}))
    for network in (Predictor.load(out).student, finetuned):
        assert {weight.dtype for weight in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_student_saved_in_16_bits_is_used_in_float32(
    folder: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    """Oracle: the answers of the same weights saved in float32, nearer than 16 bits can be, of all
    uses of a student; a search keeps its index."""
    half, whole = (
        Path(shutil.copytree(folder / "student", tmp_path / n)) for n in ("half", "whole")
    )
    student = tiny_student().to(dtype)
    student.save_pretrained(half)
    student.float().save_pretrained(whole)
    picture, pictures = folder / "pictures/0.jpg", folder / "pictures"
    got, wanted = (
        {
            **dict(inference.match(student, picture, ["a red circle", "a blue square"])),
            **dict(inference.search(student, pictures, "a red circle", tmp_path / "index")),
            **dict(inference.answer(student, picture, "what is red?")["best"]),
            **inference.judge(student, picture, "a circle is red")["probabilities"],
            "x": inference.point(student, picture, "a red circle", "red circle")["point"][0],
        }
        for student in (half, whole)
    )
    assert len(got) == 11 and got == pytest.approx(wanted, rel=1e-6)


def test_search_leaves_out_what_is_no_picture_and_says_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: the sound pictures as in a folder without the others, each of which is named; a
    damaged file of the index is made again."""
    pictures = Path(shutil.copytree(folder / "pictures", tmp_path / "pictures"))
    found = inference.search(folder / "student", pictures, "a red circle", tmp_path / "index")
    (pictures / "cut.jpg").write_bytes((pictures / "0.jpg").read_bytes()[:300])
    (pictures / "empty.png").touch()
    (pictures / "folder.jpg").mkdir()
    (pictures / "nowhere.jpg").symlink_to("none")
    first, *others = sorted((tmp_path / "index").iterdir())
    first.write_bytes(b"")
    others[0].write_bytes(others[0].read_bytes()[:100])
    faults: list[str] = []
    asked = (folder / "student", pictures, "a red circle", tmp_path / "index")
    done: list[tuple[int, int]] = []
    searched = inference.search(
        *asked, on_fault=faults.append, on_picture=lambda *now: done.append(now)
    )
    assert searched == found and done == [(number, 7) for number in range(1, 8)]
    assert [Path(fault.partition(": ")[0]).name for fault in faults] == [
        "cut.jpg",
        "empty.png",
        "folder.jpg",
        "nowhere.jpg",
    ]
    assert main(["search", str(asked[0]), str(pictures), "x", "--num", "1"]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1 and "cut.jpg: broken picture" in said.err
    for name in ("0.jpg", "1.jpg", "2.jpg"):
        (pictures / name).unlink()
    with pytest.raises(BoxlessError, match="no picture that can be read; the first: .*cut.jpg"):
        inference.search(*asked)


def test_an_index_names_the_weights_that_were_read(folder: Path, tmp_path: Path) -> None:
    """A server goes on with the weights that it read, and what it indexes must not count as that of
    others that came into the folder since. Oracle: the fingerprint before they came."""
    student = Path(shutil.copytree(folder / "student", tmp_path / "student"))
    before, loaded = LoadedStudent(student).fingerprint, LoadedStudent(student)
    _ = loaded.network
    with (student / "model.safetensors").open("ab") as weights:
        weights.write(b" ")
    assert LoadedStudent(student).fingerprint != before
    assert loaded.fingerprint == before


def test_a_phrase_that_the_student_does_not_read_is_refused(folder: Path) -> None:
    """Beyond its longest text, or blank. Oracle: by hand."""
    picture = folder / "pictures" / "0.jpg"
    for caption, phrase in (("red " * 300 + "circle", "circle"), ("a   circle", "  ")):
        with pytest.raises(BoxlessError, match="of which the student reads nothing"):
            inference.point(folder / "student", picture, caption, phrase)


@pytest.mark.parametrize("blank", ["", " \n", "\u00a0\u200b"])
def test_a_text_of_blanks_is_refused(folder: Path, tmp_path: Path, blank: str) -> None:
    """What is scored for it would say nothing. Oracle: the name of the text in the error, of each
    use, and of the command."""
    student, picture = folder / "student", folder / "pictures" / "0.jpg"
    for name, ask in (
        ("text", lambda: inference.match(student, picture, ["a", blank])),
        ("text", lambda: inference.search(student, folder / "pictures", blank, tmp_path)),
        ("question", lambda: inference.answer(student, picture, blank)),
        ("statement", lambda: inference.judge(student, picture, blank)),
        ("phrase", lambda: inference.point(student, picture, f"a{blank}b", blank)),
    ):
        with pytest.raises(BoxlessError, match=f"{name}: got "):
            ask()
    assert main(["match", str(student), str(picture), blank]) != 0


def test_a_student_that_was_read_once_gives_the_same(folder: Path, tmp_path: Path) -> None:
    """Oracle: each call on the folder."""
    student, picture = folder / "student", folder / "pictures" / "0.jpg"
    loaded = LoadedStudent(student)
    for ask in (
        lambda one: inference.match(one, picture, ["a", "a red circle"]),
        lambda one: inference.search(one, folder / "pictures", "a", tmp_path / "index"),
        lambda one: inference.answer(one, picture, "what color?"),
        lambda one: inference.judge(one, picture, "there is a circle"),
        lambda one: inference.point(one, picture, "a red circle", "red"),
    ):
        assert ask(loaded) == ask(student)


def test_search_agrees_with_match_and_keeps_an_index(folder: Path, tmp_path: Path) -> None:
    """Oracle: each picture matched alone; the second search does not look at a picture again, and a
    picture that changed is looked at."""
    student, pictures, index = folder / "student", folder / "pictures", tmp_path / "index"
    found = inference.search(student, pictures, "a red circle", index)
    alone = {
        f"{n}.jpg": inference.match(student, pictures / f"{n}.jpg", ["a red circle"])
        for n in range(3)
    }
    assert {name: score for name, score in found} == {n: v[0][1] for n, v in alone.items()}
    times = {path: path.stat().st_mtime_ns for path in index.iterdir()}
    assert inference.search(student, pictures, "a red circle", index) == found and len(times) == 3
    assert {path: path.stat().st_mtime_ns for path in index.iterdir()} == times


def test_answers_and_judgements_are_distributions(folder: Path) -> None:
    """Oracle: the answers that the head knows; probabilities that sum to one."""
    picture = folder / "pictures" / "0.jpg"
    said = inference.answer(folder / "student", picture, "what color is the circle?")
    assert said["answer"] in ("red", "blue") and said["best"][0][0] == said["answer"]
    judged = inference.judge(folder / "student", picture, "there is a red circle")
    assert sum(judged["probabilities"].values()) == pytest.approx(1)
    with pytest.raises(ValueError, match="expected one that this student knows: snli_ve, vqa"):
        inference.judge(folder / "student", picture, "x", task="nlvr")
    with pytest.raises(ValueError, match=r"got no config\.json, expected the folder of a student"):
        inference.judge(folder / "pictures", picture, "x")


def test_a_student_that_was_taught_no_task_judges_nothing(tmp_path: Path) -> None:
    """Oracle: the tasks that it would need, in the message."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="with no task, expected nlvr or snli_ve; boxless fine"):
        inference.judge(tmp_path, tmp_path / "0.jpg", "x")


def test_what_is_not_read_of_a_long_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: the tokenizer's own count: a text that it cuts, and the words behind the cut."""
    longest = StudentProcessor.from_pretrained(folder / "student").max_tokens
    fits = " ".join(["red"] * (longest - 2))
    assert inference.unread_note(folder / "student", ["a", fits]) is None
    assert inference.unread_note(folder / "student", ["half a character: \ud83d"]) is None
    note = inference.unread_note(folder / "student", ["a", f"{fits} circle"])
    assert note and note.endswith('it did not read "circle".')
    picture = str(folder / "pictures" / "0.jpg")
    assert main(["match", str(folder / "student"), picture, f"{fits} circle"]) == 0
    assert f"warning: {note}" in capsys.readouterr().err


def test_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: what the calls give; a PNG of the picture's size; the plan by arithmetic."""
    student, picture = str(folder / "student"), str(folder / "pictures" / "0.jpg")
    assert main(["match", student, picture, "a red circle", "a moon"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    out = tmp_path / "p.png"
    assert main(["point", student, picture, "a red circle", "red circle", "--out", str(out)]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert all(0 <= share <= 1.01 for share in found["point"])
    assert Image.open(out).size == Image.open(picture).size
    assert main(["point", student, picture, "a red circle", "blue"]) == 2
    assert main(["retrieval-plan", student, "--rate", "1000"]) == 0
    assert "4.34 hours" in capsys.readouterr().out  # 625 pictures x 25010 texts / 1000 a second
