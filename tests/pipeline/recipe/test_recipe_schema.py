"""The JSON schema of recipes. Oracles: the dataclasses, walked here; the built-in recipes, all of
whose keys it has to know; a reader of schemas written here for these few keywords."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from pipeline.cli.main import main
from pipeline.recipe.json_schema import recipe_schema
from pipeline.recipe.recipe import built_in_recipes, load_recipe
from pipeline.recipe.yaml_format import read_yaml
from stages.pretrain.config import PretrainConfig


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return recipe_schema()


def unknown_keys(values: Any, section: dict[str, Any], root: dict[str, Any]) -> list[str]:
    """Keys of `values` that no alternative of the section has."""
    if "$ref" in section:
        section = root["$defs"][section["$ref"].rpartition("/")[2]]
    options = section.get("oneOf") or section.get("anyOf")
    if options:
        return min((unknown_keys(values, option, root) for option in options), key=len)
    if not isinstance(values, dict):
        return []
    if "properties" not in section:
        return [] if "additionalProperties" in section else list(values)
    found = [key for key in values if key not in section["properties"]]
    for key in values.keys() & section["properties"].keys():
        found += unknown_keys(values[key], section["properties"][key], root)
    return found


def test_it_knows_every_key_of_the_built_in_recipes(schema: dict[str, Any]) -> None:
    for text in built_in_recipes().values():
        assert unknown_keys(read_yaml(text), schema, schema) == []
    assert unknown_keys({"pretrain": {"num_step": 1}}, schema, schema) == ["num_step"]


def test_unknown_keys_are_faults_and_fields_are_described(schema: dict[str, Any]) -> None:
    """As the dataclass has them, with the text that documents them there."""
    section = schema["$defs"]["PretrainConfig"]
    assert section["additionalProperties"] is False and "required" not in section
    assert set(section["properties"]) == {
        field.name for field in dataclasses.fields(PretrainConfig)
    }
    undescribed = [
        name
        for name, field in section["properties"].items()
        if not field.get("description") and "$ref" not in field
    ]
    assert undescribed == []


def test_the_command_prints_schema_and_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["base"]["type"] == "string"
    assert main(["recipe", "toy", "--set", "pretrain.num_steps=7"]) == 0
    printed = read_yaml(capsys.readouterr().out)
    assert printed["pretrain"]["num_steps"] == 7
    assert printed["seed"] == load_recipe("toy").seed
    assert main(["recipe"]) == 2
