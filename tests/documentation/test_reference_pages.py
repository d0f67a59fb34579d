"""The generated pages of the site. Oracles: the dataclasses' own fields and the parser's own
help."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import boxless
from docs.generate.api_reference import api_reference
from docs.generate.cli_reference import cli_reference, commands
from docs.generate.recipe_reference import recipe_reference, sections, undocumented_fields
from pipeline.recipe.field_docs import class_summary, field_docs


@dataclass(frozen=True, kw_only=True)
class Below:
    """Both ways to document a field.

    first, second: of two, in a line
        that continues. third: after a full stop.
    """

    first: int
    second: int
    third: int = 3
    fourth: int = 4
    """Below it,
    in two lines."""
    fifth: int = 5


@dataclass(frozen=True, kw_only=True)
class Above(Below):
    """Changes a default."""

    fourth: int = 5


def test_fields_are_documented_by_docstring_or_by_the_string_below() -> None:
    """Oracle: written by hand, for the two classes above."""
    both = "of two, in a line that continues."
    expected = {
        "first": both,
        "second": both,
        "third": "after a full stop.",
        "fourth": "Below it, in two lines.",
    }
    assert field_docs(Below) == field_docs(Above) == expected
    assert class_summary(Below) == "Both ways to document a field."


def test_every_field_of_a_recipe_has_its_documentation() -> None:
    """One line a field, in the docstring of its class (`name: text`) or as a string below it."""
    assert undocumented_fields() == []


def test_every_field_has_a_row_and_every_part_a_section() -> None:
    page = recipe_reference()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) == sum(len(dataclasses.fields(cls)) for _, cls in sections())
    assert "| `zero_stage` | int | `1` | DeepSpeed ZeRO" in page
    assert "## distill.similarity (kind: sentence)" in page


def test_every_command_and_option_is_on_the_page() -> None:
    page = cli_reference()
    for name, command, summary in commands():
        assert summary, f"{name} has no help"
        assert f"## boxless {name}\n" in page
        for action in command._actions[1:]:  # all but --help
            assert action.help, f"{name} {action.dest} has no help"
            assert all(option in page for option in action.option_strings), f"{name} {action.dest}"


def test_every_public_name_is_on_the_page() -> None:
    page = api_reference()
    assert all(f"heading: boxless.{name}\n" in page for name in boxless.__all__)
