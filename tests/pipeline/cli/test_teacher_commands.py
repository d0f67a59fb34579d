"""`boxless convert` and `boxless teacher` as someone types them. Oracle: exit statuses, words, and
what the folder holds."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from checkpoints import (
    ATTRIBUTES,
    LABELS,
    NUM_ATTRIBUTES,
    c4_weights,
    write_names,
)

from pipeline.cli.main import main
from stages.detector.checkpoints.families import FAMILIES
from stages.detector.teacher_folder import read_about, save_null_teacher


@pytest.fixture()
def files(tmp_path: Path) -> Path:
    """A folder with a checkpoint of vg-d2 and its names."""
    weights = c4_weights(num_attributes=NUM_ATTRIBUTES)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": weights}))
    write_names(tmp_path / "labels.txt", LABELS)
    write_names(tmp_path / "attributes.txt", ATTRIBUTES)
    return tmp_path


def convert(files: Path, *more: str, family: str = "vg-d2") -> int:
    return main(
        [
            "convert",
            str(files / "x.pkl"),
            "--family",
            family,
            "--labels",
            str(files / "labels.txt"),
            "--out",
            str(files / "out"),
            *more,
        ]
    )


def test_a_checkpoint_becomes_a_folder_that_says_what_it_is(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both commands say where the weights are from and how large they are; --json is JSON."""
    attributes = str(files / "attributes.txt")
    assert convert(files, "--attributes", attributes, "--license", "CC BY 4.0") == 0
    fingerprint = read_about(files / "out").fingerprint
    for said in (capsys.readouterr().out, _said(["teacher", str(files / "out")], capsys)):
        words = (fingerprint, "vg-d2", "x.pkl", "CC BY 4.0", "attributes    3", "labels        5")
        for word in words:
            assert word in said, said
    about = json.loads(_said(["teacher", str(files / "out"), "--json"], capsys))
    assert about["fingerprint"] == fingerprint and about["labels"] == LABELS
    assert about["card"]["license"] == "CC BY 4.0" and about["sizes"]["num_attributes"] == 3
    assert about["net"]["picture"]["shorter_px"] == 600


def _said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_set_changes_the_family_and_the_card_says_so(files: Path) -> None:
    """Oracle: the net's values, and the words on the command line."""
    assert (
        convert(
            files,
            "--attributes",
            str(files / "attributes.txt"),
            "--license",
            "unknown",
            "--set",
            "picture.shorter_px=300",
            "--set",
            "choice.max_objects=7",
        )
        == 0
    )
    about = read_about(files / "out")
    assert about.net is not None and about.card is not None
    assert (about.net.picture.shorter_px, about.net.choice.max_objects) == (300, 7)
    assert about.card.family == "vg-d2 with picture.shorter_px=300, choice.max_objects=7"


@pytest.mark.parametrize(
    "more, words",
    [
        (["--license", "x"], "attributes: got none, the weights have 3 attributes"),
        (["--license", ""], "license: got ''"),
        (["--license", "x", "--set", "picture.shorter=3"], "Did you mean 'shorter_px'?"),
        (["--license", "x", "--set", "picture.shorter_px=0"], "picture.shorter_px: got 0"),
        (["--license", "x", "--attributes", "none.txt"], "none.txt: got"),
    ],
)
def test_what_cannot_be_is_reported_in_words(
    files: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, the words, no traceback, and no folder."""
    assert convert(files, *more) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
    assert not (files / "out").exists()


def test_a_license_and_a_known_family_are_required(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: argparse's exit status; the families and what they fit stand in the help."""
    for more, family in (([], "vg-d2"), (["--license", "x"], "vg")):
        with pytest.raises(SystemExit) as left:
            convert(files, *more, family=family)
        assert left.value.code == 2
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for family in FAMILIES.values():
        assert f"{family.name} {family.about}" in said


def test_the_wrong_family_is_reported_which_would_fit(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: these weights are C4 weights of detectron2's conventions, with attributes."""
    assert convert(files, "--license", "x", family="vg-caffe") == 2
    assert "these weights fit the family detectron2 or vg-d2" in capsys.readouterr().err


def test_a_folder_that_is_no_teacher_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2 and the file that is missing; a null teacher is one."""
    assert main(["teacher", str(tmp_path)]) == 2
    assert "config.json: got" in capsys.readouterr().err
    save_null_teacher(tmp_path)
    assert "finds no objects" in _said(["teacher", str(tmp_path)], capsys)
    assert json.loads(_said(["teacher", str(tmp_path), "--json"], capsys))["net"] is None
