"""Finds the paths in a recipe and makes them absolute.

A relative path means a place below the folder where the command was given. The run folder keeps the
recipe, so a path that stayed relative would mean another place for a later command, given
elsewhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.recipe.dataclass_values import RecipeError
from sharding.user_paths import expand_user

FILES = (
    "ingest.root",
    "ingest.images",
    "ingest.captions",
    "ingest.instances",
    "ingest.phrases",
    "ingest.annotations",
    "ingest.exclude",
    "teach.given",
    "distill.features.path",
    "distill.features.predictions",
    "distill.features.labels",
    "distill.features.attributes",
    "distill.detectron2.weights",
    "distill.detectron2.labels",
    "distill.transformers.labels",
    "student.soho_checkpoint",
    "pretrain.cnn_cache_folder",
    "pretrain.text_cache_folder",
    "pretrain.ds_config",
    "pretrain.data.sources.folder",
    "finetune.ds_config",
    "finetune.data.train",
    "finetune.data.heldout",
    "finetune.data.train_annotations",
    "finetune.data.heldout_annotations",
    "finetune.data.train_images",
    "finetune.data.heldout_images",
    "finetune.data.train_ids",
    "finetune.data.heldout_ids",
    "evaluate.student",
    "launch.hostfile",
)
"""Always paths."""
URLS = ("pretrain.data.sources.folder",)
"""Of these, those that may be URLs."""
NAMES = (
    "teach.initial_weights",
    "distill.parser",
    "distill.similarity.model",
    "distill.detectron2.config_file",
    "distill.transformers.model",
    "student.pretrained_cnn",
    "student.pretrained_text",
    "launch.slurm.container_image",
)
"""Paths, or names of something published: a path where it begins as one, or is there."""
MOUNTS = ("launch.slurm.container_mounts",)
"""`SOURCE:TARGET` of a container: the source is a path of this machine."""

_NUMBER_IN_LIST = re.compile(r"\[\d+\]")


def absolute_paths(values: dict[str, Any]) -> dict[str, Any]:
    """The plain values of a recipe with every path absolute and ~ expanded; {root} stays."""
    for place in FILES:
        _change(values, place.split("."), _absolute)
    for place in NAMES:
        _change(values, place.split("."), _absolute_if_path)
    for place in MOUNTS:
        _change(values, place.split("."), _absolute_source)
    return values


def _change(values: Any, keys: list[str], change: Any) -> None:
    """Apply `change` to the texts at a dotted place, also in lists; what is missing or something
    else is left for the recipe's checks. RecipeError for a text that is no path."""
    for place, holder in _holders(values, keys[:-1]):
        name, held = f"{place}{keys[-1]}", holder.get(keys[-1])
        if isinstance(held, str):
            holder[keys[-1]] = change(_checked(name, held))
        elif isinstance(held, list):
            holder[keys[-1]] = [
                change(_checked(f"{name}[{number}]", one)) if isinstance(one, str) else one
                for number, one in enumerate(held)
            ]


def _checked(name: str, text: str) -> str:
    """The text. RecipeError where it is empty, which would mean the folder where the command is
    given, has a null byte, which no path can have, or is a URL where only paths can be read."""
    if not text:
        raise RecipeError(
            f"{name} is empty; expected a path, or leave it out (a variable that is not set?)"
        )
    if "\0" in text:
        raise RecipeError(f"{name} is {text!r}; expected a path, without null bytes")
    place = _NUMBER_IN_LIST.sub("", name)
    if "://" in text and place in FILES and place not in URLS:
        raise RecipeError(
            f"{name} is {text!r}, a URL; expected a path on this machine: copy the files here first "
            f"({', '.join(URLS)} alone may be URLs)"
        )
    return text


def _holders(values: Any, keys: list[str], place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Mappings at a dotted place, each with where it is: `pretrain.data.sources[0].`."""
    if isinstance(values, list):
        for number, one in enumerate(values):
            yield from _holders(one, keys, f"{place.removesuffix('.')}[{number}].")
    elif isinstance(values, dict):
        if keys:
            yield from _holders(values.get(keys[0]), keys[1:], f"{place}{keys[0]}.")
        else:
            yield place, values


def _absolute(path: str) -> str:
    """A path from the root; URLs stay, and so does what begins with the place of another."""
    if "://" in path or path.startswith("{root}"):
        return path
    return os.path.abspath(expand_user(path))


def _absolute_if_path(name: str) -> str:
    is_path = name.startswith(("~", "./", "../", "/")) or (bool(name) and Path(name).exists())
    return _absolute(name) if is_path else name


def _absolute_source(mount: str) -> str:
    source, colon, target = mount.partition(":")
    return f"{_absolute(source)}{colon}{target}"
