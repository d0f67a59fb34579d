"""The command `recipe`: prints a recipe with every value, or the JSON schema of recipes."""

from __future__ import annotations

import argparse
import json

from boxless.errors import BoxlessError
from pipeline.cli.arguments import add_set_option

Commands = argparse._SubParsersAction


def add_recipe_command(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the command to the command line's parser."""
    command = commands.add_parser(
        "recipe",
        help="print a recipe with every value, or the JSON schema of recipes for editors",
        description="Prints the recipe that a run would have, as YAML: its base, its file and --set "
        "merged and checked. With --schema, the JSON schema of recipe files instead.",
    )
    command.add_argument("recipe", nargs="?", help="a built-in recipe's name, or a YAML file")
    add_set_option(command)
    command.add_argument("--schema", action="store_true", help="print the JSON schema")
    command.set_defaults(command=_recipe)


def _recipe(args: argparse.Namespace) -> int:
    if args.schema:
        from pipeline.recipe.json_schema import recipe_schema

        print(json.dumps(recipe_schema(), indent=1))
        return 0
    from pipeline.recipe.recipe import built_in_recipes, dump_recipe, load_recipe

    if args.recipe is None:
        raise BoxlessError(
            f"got no recipe, expected a YAML file or one of {', '.join(built_in_recipes())}; or "
            "--schema"
        )
    print(dump_recipe(load_recipe(args.recipe, args.set)), end="")
    return 0
