"""Paths and numbers on the command line. Oracle: by hand."""

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


@pytest.mark.parametrize(
    "arguments",
    [
        "search S D text --num -1",
        "search S D text --num 0",
        "serve S --port 99999",
        "serve S --port -1",
        "retrieval-plan S --devices 0",
        "retrieval-plan S --pictures -5",
        "retrieval-plan S --rate nan",
        "retrieval-plan S --rate -5",
        "logs RUN --lines 0",
        "logs RUN --rank -1",
        "cluster-plan RUN --epochs nan",
        "cluster-plan RUN --picture-bytes -3",
        "cluster-plan RUN --recovery-seconds inf",
        "run toy --nodes x",
        "ablation toy --seeds 0",
    ],
)
def test_a_number_that_cannot_be_is_refused(
    arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is loaded, with the value and the range."""
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    option, value = arguments.split()[-2:]
    assert ended.value.code == 2
    assert f"argument {option}: got {value!r}, expected a " in capsys.readouterr().err
