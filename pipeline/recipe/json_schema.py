"""The JSON schema of recipes, by which editors complete keys, show what they mean and mark
faults."""

from __future__ import annotations

from typing import Any

from pipeline.recipe.dataclass_values import adapter, dataclasses_in
from pipeline.recipe.field_docs import class_summary, field_docs
from pipeline.recipe.recipe import Recipe

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_BASE = {
    "type": "string",
    "title": "Base",
    "description": "a recipe, by name or path, that this one is laid over",
}


def recipe_schema() -> dict[str, Any]:
    """The schema, with the documentation of each section and field as its description. No key is
    required: what a recipe leaves out may be in its base."""
    schema = adapter(Recipe).json_schema()
    sections = {"Recipe": schema, **schema.get("$defs", {})}
    for cls in dataclasses_in(Recipe):
        section = sections[cls.__name__]
        section["description"] = class_summary(cls)
        section.pop("required", None)
        for name, text in field_docs(cls).items():
            section["properties"][name]["description"] = text
    schema["properties"] = {"base": _BASE, **schema["properties"]}
    return {**schema, "$schema": _DIALECT, "title": "A recipe of Boxless"}
