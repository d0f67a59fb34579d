"""Paths on the command line. Oracle: by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli.arguments import user_path
from pipeline.cli.main import main
from pipeline.recipe.dataclass_values import RecipeError
from pipeline.recipe.recipe import load_recipe


def test_an_empty_path_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--run "$RUN"` of a variable that is not set would fill the folder where one stands."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["ingest", "toy-tiny", "--run", ""])
    assert ended.value.code == 2 and "got an empty path" in capsys.readouterr().err
    with pytest.raises(RecipeError, match="ingest.root is empty; expected a path"):
        load_recipe("coco", ["ingest.root=''", "ingest.captions=c.json"])
    assert not list(tmp_path.iterdir())


def test_the_home_of_an_unknown_user_is_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a shell; pathlib raises an error of its own."""
    monkeypatch.setenv("HOME", "/home/me")
    assert user_path("~/runs/x") == Path("/home/me/runs/x")
    assert user_path("~no-such-user-7f/x") == Path("~no-such-user-7f/x")
