"""The public API of Boxless: `from boxless import Student, StudentProcessor, ShardStream, ...`.

Names are imported when they are first used (PEP 562), so that `import boxless` loads neither torch
nor anything else. The docs page "Python API" shows each name in a few lines.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boxless.errors import BoxlessError
    from pipeline.recipe.recipe import Recipe, dump_recipe, load_recipe
    from sharding.format.catalog import Catalog, read_catalog, write_catalog
    from sharding.format.manifest import Manifest, read_manifest
    from sharding.format.schema import Sample, ShardError, decode_objects, object_dtype
    from sharding.reading.dataset_source import DatasetSource
    from sharding.reading.stream import ShardStream, positions
    from sharding.reading.webdataset_adapter import WebdatasetAdapter
    from sharding.tools.index import index_folder
    from sharding.tools.repair import repair
    from sharding.tools.verify import verify_paths as verify
    from sharding.writing.shard_writer import write_shard
    from stages.detector.teacher_folder import load_teacher
    from stages.student.network import Student
    from stages.student.network_config import StudentNetConfig
    from stages.student.processor import StudentProcessor

# Where each public name is: its module, and its name there.
_PLACES = {
    "BoxlessError": ("boxless.errors", "BoxlessError"),
    "Catalog": ("sharding.format.catalog", "Catalog"),
    "DatasetSource": ("sharding.reading.dataset_source", "DatasetSource"),
    "Manifest": ("sharding.format.manifest", "Manifest"),
    "Recipe": ("pipeline.recipe.recipe", "Recipe"),
    "Sample": ("sharding.format.schema", "Sample"),
    "ShardError": ("sharding.format.schema", "ShardError"),
    "ShardStream": ("sharding.reading.stream", "ShardStream"),
    "Student": ("stages.student.network", "Student"),
    "StudentNetConfig": ("stages.student.network_config", "StudentNetConfig"),
    "StudentProcessor": ("stages.student.processor", "StudentProcessor"),
    "WebdatasetAdapter": ("sharding.reading.webdataset_adapter", "WebdatasetAdapter"),
    "decode_objects": ("sharding.format.schema", "decode_objects"),
    "dump_recipe": ("pipeline.recipe.recipe", "dump_recipe"),
    "index_folder": ("sharding.tools.index", "index_folder"),
    "load_recipe": ("pipeline.recipe.recipe", "load_recipe"),
    "load_teacher": ("stages.detector.teacher_folder", "load_teacher"),
    "object_dtype": ("sharding.format.schema", "object_dtype"),
    "positions": ("sharding.reading.stream", "positions"),
    "read_catalog": ("sharding.format.catalog", "read_catalog"),
    "read_manifest": ("sharding.format.manifest", "read_manifest"),
    "repair": ("sharding.tools.repair", "repair"),
    "verify": ("sharding.tools.verify", "verify_paths"),
    "write_catalog": ("sharding.format.catalog", "write_catalog"),
    "write_shard": ("sharding.writing.shard_writer", "write_shard"),
}

__all__ = [
    "BoxlessError",
    "Catalog",
    "DatasetSource",
    "Manifest",
    "Recipe",
    "Sample",
    "ShardError",
    "ShardStream",
    "Student",
    "StudentNetConfig",
    "StudentProcessor",
    "WebdatasetAdapter",
    "decode_objects",
    "dump_recipe",
    "index_folder",
    "load_recipe",
    "load_teacher",
    "object_dtype",
    "positions",
    "read_catalog",
    "read_manifest",
    "repair",
    "verify",
    "write_catalog",
    "write_shard",
]


def __getattr__(name: str) -> Any:
    """The public name `name`, imported now. Raises AttributeError, with the valid names."""
    if name not in _PLACES:
        raise AttributeError(f"boxless has no {name!r}; it has {', '.join(__all__)}")
    module, attribute = _PLACES[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
