"""A recipe: everything that shapes a run, as frozen dataclasses read from YAML.

``load_recipe`` takes the name of a built-in recipe (``pipeline/recipes/NAME.yaml``) or a file, lays
it over the recipe that its ``base:`` names, lays ``--set a.b=c`` over both, and checks the lot.
Each stage's part is a dataclass beside the stage, documented there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from boxless.errors import BoxlessError
from launch.config import LaunchConfig
from pipeline.recipe.dataclass_values import RecipeError, build, nearest, plain
from pipeline.recipe.paths import absolute_paths
from pipeline.recipe.renamed import with_new_names
from pipeline.recipe.yaml_format import read_yaml, write_yaml
from stages.detector.training.config import TeachConfig
from stages.distill.config import DistillConfig
from stages.ingest.config import IngestConfig
from stages.pretrain.config import PretrainConfig
from stages.student.config import StudentConfig
from stages.transfer.config import EvaluateConfig, FinetuneConfig

__all__ = ["Recipe", "RecipeError", "built_in_recipes", "dump_recipe", "load_recipe"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run, named.

    name: what the run is called; the run folder is ``runs/NAME`` unless ``--run`` says otherwise.
    description: the experiment card: what it is for, what it costs, what it reached.
    seed: where every random choice of every stage starts.
    ingest, teach, distill, student, pretrain, finetune, evaluate: the stages, in running order.
    launch: where processes run; the only part that shapes no result.
    """

    name: str
    description: str = ""
    seed: int = 0
    ingest: IngestConfig
    teach: TeachConfig = field(default_factory=TeachConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise BoxlessError(
                f"name is {self.name!r}; expected letters, digits, '.', '_' and '-', a letter or "
                "digit first: it names the run folder and the cluster's jobs."
            )
        if self.seed < 0:
            raise BoxlessError(f"seed is {self.seed}; expected 0 or more.")
        if self.pretrain.mvm.weight and self.student.neck.kind == "plain":
            raise BoxlessError(
                f"pretrain.mvm.weight is {self.pretrain.mvm.weight}, but student.neck.kind is "
                "plain, which has no visual dictionary; expected kind soho, or weight 0."
            )
        needs_contrast = bool(self.pretrain.itc.weight) or self.pretrain.itm.negatives == "itc"
        if needs_contrast and not self.student.itc_size:
            raise BoxlessError(
                f"pretrain.itc.weight is {self.pretrain.itc.weight} and pretrain.itm.negatives "
                f"{self.pretrain.itm.negatives}, but student.itc_size is 0, a student without a "
                "contrastive head; expected a size, as 256, or weight 0 and negatives random."
            )
        if self.pretrain.itm.negatives == "itc" and not self.pretrain.itc.weight:
            raise BoxlessError(
                "pretrain.itm.negatives is itc, but pretrain.itc.weight is 0, so that the "
                "contrastive head that draws them learns nothing; expected a weight above 0."
            )
        if self._aligns_masked_cells():
            raise BoxlessError(
                "student.neck.width_mask is height, which masks columns of upright pictures (a "
                "fault of SOHO's code); pretrain.pra with region cell cannot align phrases with "
                "what is masked. Expected width, pra.region object, or pra.weight 0."
            )

    def _aligns_masked_cells(self) -> bool:
        neck, pra = self.student.neck, self.pretrain.pra
        return bool(
            neck.kind == "soho"
            and neck.width_mask == "height"
            and pra.weight
            and pra.region == "cell"
        )


def load_recipe(
    name_or_path: str | Path,
    overrides: Iterable[str] = (),
    *,
    merge: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Recipe:
    """The recipe of that name or file, with ``overrides`` such as ``pretrain.num_steps=100`` laid
    over it, and what ``merge`` makes of that; its paths absolute. Only the result is checked.
    Raises RecipeError."""
    values = read_recipe(name_or_path, overrides)
    return build(Recipe, absolute_paths(merge(values) if merge else values))


def dump_recipe(recipe: Recipe) -> str:
    """YAML text with every value written out; ``load_recipe`` reads the same recipe from it."""
    return write_yaml(plain(recipe))


def built_in_recipes() -> dict[str, str]:
    """The YAML text of each built-in recipe, by name."""
    folder = resources.files("pipeline") / "recipes"
    files = sorted((file.name, file) for file in folder.iterdir() if file.name.endswith(".yaml"))
    return {name.removesuffix(".yaml"): file.read_text("utf-8") for name, file in files}


def read_recipe(name_or_path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The plain values of a recipe: file over base, overrides over file; not yet checked."""
    values = _read(str(name_or_path), beside=Path(), seen=())
    for override in overrides:
        set_value(values, override)
    return with_new_names(values)


def _read(name: str, *, beside: Path, seen: tuple[str, ...]) -> dict[str, Any]:
    text, origin, stem = _find(name, beside)
    if origin in seen:
        raise RecipeError(f"{origin} is its own base: {' -> '.join((*seen, origin))}.")
    try:
        values = read_yaml(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{origin} is not YAML that can be read: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{origin} holds {type(values).__name__}; expected keys and values.")
    values = {"name": stem} | with_new_names(values)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise RecipeError(f"base is {base!r} in {origin}; expected the name or path of a recipe.")
    below = _read(base, beside=Path(origin).parent, seen=(*seen, origin))
    return _merge(below, values)


def _find(name: str, beside: Path) -> tuple[str, str, str]:
    """The text of a recipe, where it was found, and the name it has by that."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        path = beside / name
        try:
            return path.read_text("utf-8"), str(path), _name_of(path)
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"cannot read the recipe {path}: {error}") from error
    known = built_in_recipes()
    if name not in known:
        raise RecipeError(
            f"{name!r} is not a recipe; expected a YAML file or one of {', '.join(known)}."
            f"{nearest(name, known)}"
        )
    return known[name], name, name


def _name_of(path: Path) -> str:
    """A recipe's name by its file, with a dash for what a name cannot have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "recipe"


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below``: mappings are joined key by key, all else replaces."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        joined = isinstance(under, dict) and isinstance(value, dict)
        merged[key] = _merge(under, value) if joined else value  # type: ignore[arg-type]
    return merged


def set_value(values: dict[str, Any], override: str) -> None:
    """Lay one ``a.b=c`` over ``values``, in place; ``c`` is a YAML value. Raises RecipeError."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(
            f"--set got {override!r}; expected KEY.PATH=VALUE, as in pretrain.num_steps=100."
        )
    try:
        value = read_yaml(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {path}: {text!r} is not a YAML value: {error}") from error
    for i, key in enumerate(keys[:-1]):
        if values.get(key) is None:
            values[key] = {}
        values = values[key]
        if not isinstance(values, dict):
            raise RecipeError(f"--set {path}: {'.'.join(keys[: i + 1])} is a value without keys.")
    values[keys[-1]] = value
