"""A teacher on disk: the same teacher back, or a reason why not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from teacher_scenes import ATTRIBUTES, LABELS, NET, draw, look, random_model

from stages.detector.null_teacher import NullTeacher
from stages.detector.predictor import Teacher
from stages.detector.teacher_folder import (
    TeacherError,
    copy_teacher,
    load_teacher,
    read_about,
    save_null_teacher,
    save_teacher,
)

NET_JSON = dataclasses.asdict(NET)


def save(folder: Path, seed: int = 0) -> str:
    return save_teacher(folder, random_model(seed), label_names=LABELS, attribute_names=ATTRIBUTES)


def test_a_teacher_comes_back_as_it_was(tmp_path: Path) -> None:
    """Oracle: what the net in memory detects, byte for byte, and its names."""
    fingerprint = save(tmp_path / "teacher")
    teacher = load_teacher(tmp_path / "teacher")
    assert (teacher.label_names, teacher.attribute_names) == (LABELS, ATTRIBUTES)
    assert teacher.fingerprint == fingerprint and teacher.feature_size == 32
    before = Teacher(random_model(), label_names=LABELS, attribute_names=ATTRIBUTES, fingerprint="")
    pictures = [torch.from_numpy(draw(seed)[0]) for seed in range(3)]
    for got, expected in zip(look(teacher, pictures), look(before, pictures)):
        assert len(got) > 0 and got.tobytes() == expected.tobytes()


def test_the_fingerprint_names_weights_and_names(tmp_path: Path) -> None:
    """Oracle: equal teachers have equal files and fingerprints, others have others."""
    first, again = save(tmp_path / "first"), save(tmp_path / "again")
    other_names = save_teacher(
        tmp_path / "names", random_model(), label_names=LABELS[::-1], attribute_names=ATTRIBUTES
    )
    assert first == again and len({first, save(tmp_path / "other", seed=1), other_names}) == 3
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_a_card_of_an_older_version_is_read(tmp_path: Path) -> None:
    """Oracle: the same folder with the key that version 0.1 wrote, "licence"."""
    save(tmp_path)
    before = read_about(tmp_path).card
    text = (tmp_path / "config.json").read_text()
    assert '"license"' in text
    (tmp_path / "config.json").write_text(text.replace('"license"', '"licence"'))
    assert read_about(tmp_path).card == before


def test_a_null_teacher_keeps_no_card_of_another(tmp_path: Path) -> None:
    """Oracle: a null teacher has no CARD.md, whether it is written or copied over another's."""
    for name in ("written", "copied"):
        save(tmp_path / name)
    save_null_teacher(tmp_path / "written")
    copy_teacher(tmp_path / "written", tmp_path / "copied")
    for name in ("written", "copied"):
        assert isinstance(load_teacher(tmp_path / name), NullTeacher)
        assert not (tmp_path / name / "CARD.md").exists()


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def change_a_weight(folder: Path, value: float) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["box_predictor.cls_score.bias"][0] = value
    safetensors.torch.save_file(weights, folder / "model.safetensors")


def add_a_label(folder: Path) -> None:
    names = {"labels": [*LABELS, "more"], "attributes": ATTRIBUTES}
    (folder / "names.json").write_text(json.dumps(names))


def widen(folder: Path) -> None:
    net = json.loads((folder / "config.json").read_text())["net"]
    edit_config(folder, net={**net, "boxes": {**net["boxes"], "feature_size": 64}})


@pytest.mark.parametrize(
    "damage, reported",
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json: got .* finished teacher"),
        (lambda folder: (folder / "names.json").write_text("{"), "names.json"),
        (lambda folder: edit_config(folder, schema="boxless/teacher/0"), "schema"),
        (
            lambda folder: edit_config(folder, net={**NET_JSON, "boxes": {"feature_size": 0}}),
            "feature_size",
        ),
        (lambda folder: edit_config(folder, net={**NET_JSON, "width": 3}), "width"),
        (widen, "do not fit"),
        (cut, "do not fit"),
        (lambda folder: change_a_weight(folder, float("nan")), "not finite in box_predictor.cls"),
        (lambda folder: change_a_weight(folder, 1.0), "was changed"),
        (add_a_label, "do not fit"),
    ],
)
def test_a_damaged_folder_is_refused_with_the_reason(
    damage: Callable[[Path], object], reported: str, tmp_path: Path
) -> None:
    """Oracle: TeacherError that names the file at fault and says to run teach again."""
    save(tmp_path)
    damage(tmp_path)
    with pytest.raises(TeacherError, match=reported) as error:
        load_teacher(tmp_path)
    assert "run boxless teach" in str(error.value)
