"""Types of command-line arguments, which refuse invalid values with the usage, and the option that
several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from sharding.user_paths import expand_user

MAX_PORT = 65535
LARGEST_WHOLE = 2**63 - 1
"""What arrays and files count with: 64 bits, of which one is the sign."""
LARGEST = 1e18
"""Products of two such numbers are far from overflowing; so is 1 over one of them."""


def user_path(text: str) -> Path:
    """A path with ~ expanded, which shells do not do in `--run=~/x`. An empty one, as of a variable
    that is not set, would mean the folder where the command is given; a URL would lose a slash and
    mean a place below it."""
    if not text:
        raise argparse.ArgumentTypeError(
            "got an empty path, expected a name (. means the folder where you are)"
        )
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"got the URL {_shown(text)}, expected a path on this machine: copy the files here first"
        )
    return expand_user(text)


def user_path_or_url(text: str) -> str:
    """A URL as it is; else as `user_path`, as a text."""
    return text if "://" in text else str(user_path(text))


def whole_number(*, lowest: int, highest: int = LARGEST_WHOLE) -> Callable[[str], int]:
    """What argparse takes as a type: a whole number from `lowest`, and up to `highest`."""
    expected = f"{lowest} or more"
    if highest != LARGEST_WHOLE:
        expected = f"{lowest} to {highest}"

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = lowest - 1
        if number > highest == LARGEST_WHOLE:
            raise argparse.ArgumentTypeError(
                f"got {_shown(text)}, expected a whole number of 64 bits, at most {highest}"
            )
        if not lowest <= number <= highest:
            raise argparse.ArgumentTypeError(
                f"got {_shown(text)}, expected a whole number, {expected}"
            )
        return number

    return read


def positive_number(text: str) -> float:
    """What argparse takes as a type: a number above 0, from 1 over LARGEST to LARGEST."""
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 1 / LARGEST <= number <= LARGEST:
        raise argparse.ArgumentTypeError(
            f"got {_shown(text)}, expected a number above 0, at most {LARGEST:g}"
        )
    return number


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def add_set_option(command: argparse.ArgumentParser) -> None:
    """Add `--set` of the values of a recipe, which may be repeated."""
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        help="override a value of the recipe; may be repeated",
    )
