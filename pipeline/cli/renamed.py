"""Commands and options that have another name now: the old ones work for one more release."""

from __future__ import annotations

import sys
from collections.abc import Sequence

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


def _warn(old: str, new: str) -> None:
    print(
        f"boxless: warning: {old!r} is called {new!r} now; the next release knows the new name only",
        file=sys.stderr,
    )
