"""Old names of commands and options. Oracle: the changelog's list of renames, written out here."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli.main import main
from pipeline.cli.renamed import with_new_names


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["look", "objects", "--out", "a.html"], ["view", "objects", "--out", "a.html"]),
        (["inside", "student"], ["inspect", "student"]),
        (["mixing", "objects"], ["shuffle-quality", "objects"]),
        (["convert", "a", "--licence", "MIT"], ["convert", "a", "--license", "MIT"]),
        (["convert", "a", "--licence=MIT"], ["convert", "a", "--license=MIT"]),
    ],
)
def test_an_old_name_is_read_with_a_warning(
    old: list[str], new: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert with_new_names(old) == new
    warned = capsys.readouterr().err
    assert f"{new[0]}'" in warned or "'--license'" in warned
    assert with_new_names(new) == new and not capsys.readouterr().err


def test_only_the_command_itself_is_renamed() -> None:
    """Not an argument that happens to be called so."""
    kept = ["verify", "look", "mixing"]
    assert with_new_names(kept) == kept


def test_the_command_line_takes_an_old_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It gets as far as the new command does: to shards that are not there."""
    assert main(["look", str(tmp_path), "--out", str(tmp_path / "a.html")]) == 2
    old = capsys.readouterr().err
    assert main(["view", str(tmp_path), "--out", str(tmp_path / "a.html")]) == 2
    assert "is called 'boxless view' now" in old and old.endswith(capsys.readouterr().err)
