"""The page "Command line": every command with its arguments, from the argument parser itself."""

from __future__ import annotations

import argparse
import textwrap

from pipeline.cli.main import command_line_parser

_INTRO = """# Command line

`boxless COMMAND ...`, or `python -m boxless COMMAND ...`. Made from the argument parser. Paths may
begin with `~`. Exit status: 0 done, 1 faults found (`verify`, `doctor`) or an internal error, 2 the
command cannot be carried out as given.
"""


def cli_reference() -> str:
    """The page as Markdown: a section a command, a table row an argument."""
    parts = [_INTRO]
    for name, command, summary in commands():
        parts.append(f"## boxless {name}\n\n{_sentence(command.description or summary)}\n")
        parts.append(f"```text\n{_usage(command)}\n```\n")
        parts.append(_table(command))
    return "\n".join(parts)


def commands() -> list[tuple[str, argparse.ArgumentParser, str]]:
    """(name, parser, summary) of every command, in the order of `boxless --help`."""
    (action,) = (
        action
        for action in command_line_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
    return [(name, action.choices[name], summaries[name]) for name in summaries]


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "?")) else text + "."


def _usage(command: argparse.ArgumentParser) -> str:
    return textwrap.dedent(" " * len("usage: ") + command.format_usage().removeprefix("usage: "))


def _table(command: argparse.ArgumentParser) -> str:
    rows = ["| argument | meaning |", "| --- | --- |"]
    for action in command._actions:
        if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
            continue
        choices = ""
        if action.choices:
            choices = " One of " + ", ".join(f"`{choice}`" for choice in action.choices) + "."
        meaning = _sentence((action.help or "").replace("%(default)s", str(action.default)))
        cells = (f"`{_spelling(action)}`", (meaning if action.help else "") + choices)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _spelling(action: argparse.Action) -> str:
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if not action.option_strings:
        return metavar
    names = ", ".join(action.option_strings)
    return names if action.nargs == 0 else f"{names} {metavar}"
