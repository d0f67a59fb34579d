"""Renamed commands and options: the old ones work for one more release, with a warning."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator, Sequence

COMMANDS = {"look": "view", "inside": "inspect", "mixing": "shuffle-quality"}
"""Old command -> new one."""
OPTIONS = {("convert", "--licence"): "--license"}
"""(command, old option) -> new option."""


def with_new_names(arguments: Sequence[str]) -> list[str]:
    """The command line under today's names; each old one is named on stderr, with the new one."""
    named = list(arguments)
    if named and named[0] in COMMANDS:
        _warn(f"boxless {named[0]}", f"boxless {COMMANDS[named[0]]}")
        named[0] = COMMANDS[named[0]]
    for number, argument in enumerate(named[1:], start=1):
        option, equals, value = argument.partition("=")
        if (named[0], option) in OPTIONS:
            new = OPTIONS[named[0], option]
            _warn(option, new)
            named[number] = f"{new}{equals}{value}"
    return named


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings of old names in recipes look like those of old commands, without a line of code."""
    before = warnings.formatwarning

    def formatted(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        if category is FutureWarning:
            return f"boxless: warning: {message}\n"
        return before(message, category, filename, lineno, line)

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = before


def _warn(old: str, new: str) -> None:
    print(
        f"boxless: warning: {old!r} is called {new!r} now; the next release knows the new name only",
        file=sys.stderr,
    )
