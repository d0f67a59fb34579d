"""Values of command-line arguments: what is no such value is refused with the usage."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from sharding.user_paths import expand_user

MAX_PORT = 65535


def user_path(text: str) -> Path:
    """A path with ~ expanded, which shells do not do in `--run=~/x`. An empty one, as of a variable
    that is not set, would mean the folder where the command is given."""
    if not text:
        raise argparse.ArgumentTypeError(
            "got an empty path, expected a name (. means the folder where you are)"
        )
    return expand_user(text)


def user_path_or_url(text: str) -> str:
    """A URL as it is; else as `user_path`, as a text."""
    return text if "://" in text else str(user_path(text))


def whole_number(*, lowest: int, highest: int | None = None) -> Callable[[str], int]:
    """What argparse takes as a type: a whole number from `lowest`, and up to `highest`."""
    expected = f"{lowest} or more" if highest is None else f"{lowest} to {highest}"

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = lowest - 1
        if number < lowest or (highest is not None and number > highest):
            raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number, {expected}")
        return number

    return read


def positive_number(text: str) -> float:
    """What argparse takes as a type: a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0")
    return number
