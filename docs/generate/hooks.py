"""mkdocs hooks that add the generated pages and the Markdown files of the project's root."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # mkdocs runs a hook without the project on the path

from docs.generate.api_reference import api_reference  # noqa: E402
from docs.generate.cli_reference import cli_reference  # noqa: E402
from docs.generate.file_schemas import FILES  # noqa: E402
from docs.generate.recipe_reference import recipe_reference  # noqa: E402
from docs.generate.root_pages import root_page  # noqa: E402

PAGES: dict[str, Callable[[], str]] = {
    "index.md": lambda: root_page("README.md"),
    "contributing.md": lambda: root_page("CONTRIBUTING.md"),
    "changelog.md": lambda: root_page("CHANGELOG.md"),
    "reference/recipe.md": recipe_reference,
    "reference/cli.md": cli_reference,
    "reference/api.md": api_reference,
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every page of PAGES and the JSON schemas to the site."""
    for path, page in PAGES.items():
        files.append(File.generated(config, path, content=page()))
    for name, model in FILES.items():
        schema = json.dumps(model.model_json_schema(by_alias=True), indent=1)
        files.append(File.generated(config, f"schemas/{name}.schema.json", content=schema))
    return files
