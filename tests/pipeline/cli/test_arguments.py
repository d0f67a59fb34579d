"""Paths and numbers on the command line. Oracle: by hand."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cli.arguments import user_path, user_path_or_url
from pipeline.cli.main import command_line_parser, main
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
    "command", ["verify URL", "index URL", "repair URL", "ingest toy --run URL"]
)
def test_a_url_in_place_of_a_path_is_said_to_be_one(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A path takes two slashes for one, so that `http:/host` was said to be missing."""
    with pytest.raises(SystemExit) as ended:
        main([part.replace("URL", "http://host/set") for part in command.split()])
    assert ended.value.code == 2
    assert (
        "got the URL 'http://host/set', expected a path on this machine" in capsys.readouterr().err
    )


def test_a_folder_of_shards_or_its_url() -> None:
    """~ is expanded in what is no URL. Oracle: by hand."""
    assert user_path_or_url("~no-such-user-7f") == "~no-such-user-7f"
    assert user_path_or_url("~/x") == str(Path.home() / "x")
    assert user_path_or_url("s3://a//b/~") == "s3://a//b/~"
    with pytest.raises(argparse.ArgumentTypeError, match="empty path"):
        user_path_or_url("")


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        ("verify none", "none: got no file or folder there, expected a tar"),
        ("index none", "none: got no folder there, expected one of tars"),
        ("point S p.jpg caption caption --out x.jpg", "--out: got x.jpg, expected a name that"),
    ],
)
def test_a_path_that_cannot_be_is_named(
    arguments: str,
    reported: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not the manifest beside it, or what would be found in it."""
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) in (1, 2)
    said = capsys.readouterr()
    assert reported in said.out + said.err


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
        "ablation toy --seeds 1180591620717411303424",
        "sizing --pictures 1180591620717411303424",
        "sizing --pictures nan",
        "shuffle-quality D --micro-batch-size 1180591620717411303424",
        "shuffle-quality D --num-ranks -1",
        "shuffle-quality D --seed -1",
        "repack D --out E --samples-per-shard 1180591620717411303424",
        "cluster-plan RUN --pictures 1180591620717411303424",
        "cluster-plan RUN --epochs 1e300",
        "cluster-plan RUN --recovery-seconds 1e-300",
        "view D --out x.html --num 1180591620717411303424",
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


def _options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _options(command)
        yield action


def test_no_whole_number_is_without_bounds() -> None:
    """int() takes 2 to the power of 70, which ends in an OverflowError of numpy or C. Oracle: every
    option of every command that takes a whole number."""
    options = list(_options(command_line_parser()))
    assert not [action.option_strings for action in options if action.type is int]
    numbers = [action for action in options if "whole_number" in repr(action.type)]
    assert len(numbers) > 15
    for action in numbers:
        assert callable(action.type)
        for text in (str(2**70), "-1", "9" * 5000):
            with pytest.raises(argparse.ArgumentTypeError, match="expected a whole number"):
                action.type(text)
