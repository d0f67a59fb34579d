"""The user's own files outside the run folder that a stage reads."""

from __future__ import annotations

import dataclasses
import glob
import os
from pathlib import Path

from pipeline.recipe.recipe import Recipe
from pipeline.runner.stages.stage_graph import StageKind
from sharding.writing.atomic import sha256_file, sha256_of


def external_inputs(recipe: Recipe, kind: StageKind) -> dict[str, str]:
    """A name for each of them, and a word that changes when they do.

    Raises SourceError where the corpus is not what the recipe says, and ShardError for shards to
    train on that cannot be read.
    """
    if kind.name == "ingest":
        from stages.ingest.run import open_source  # heavy; a status does without

        return {"corpus": open_source(recipe.ingest, seed=recipe.seed).fingerprint()}
    if kind.name == "teach" and recipe.teach.given is not None:
        config = Path(recipe.teach.given) / "config.json"  # holds a hash of the whole teacher
        return {"teach.given": sha256_file(config) if config.is_file() else "not there"}
    if kind.name == "teach" and recipe.teach.initial_weights is not None:
        from stages.detector.training.initial_weights import weights_file  # heavy

        weights = weights_file(Path(recipe.teach.initial_weights))
        return {"teach.initial_weights": sha256_file(weights) if weights.is_file() else "not there"}
    if kind.name == "distill":
        return _models_from_elsewhere(recipe)
    if kind.name == "evaluate" and recipe.evaluate.student is not None:
        folder = Path(recipe.evaluate.student)
        return {
            "evaluate.student": _stamp(str(folder / "config.json"), str(folder / "*.safetens*"))
        }
    if kind.name == "pretrain":
        return _settings_and_sources(recipe)
    if kind.name == "finetune":
        return _task_files(recipe)
    return {}


def _task_files(recipe: Recipe) -> dict[str, str]:
    """DeepSpeed's settings, and sizes and times of the task's files, in folders two levels deep."""
    config = recipe.finetune
    words = {}
    if config.ds_config is not None:
        words["finetune.ds_config"] = _stamp(config.ds_config)
    for field in dataclasses.fields(config.data):
        value = getattr(config.data, field.name)
        if isinstance(value, str) and os.path.isabs(value) and os.path.exists(value):
            inside = [os.path.join(glob.escape(value), level) for level in ("*", "*/*")]
            words[f"finetune.data.{field.name}"] = _stamp(value, *inside)
    return words


def _settings_and_sources(recipe: Recipe) -> dict[str, str]:
    """DeepSpeed's settings and the shards that pretrain takes from elsewhere."""
    words = {}
    if recipe.pretrain.ds_config is not None:
        settings = Path(recipe.pretrain.ds_config)
        words["pretrain.ds_config"] = sha256_file(settings) if settings.is_file() else "not there"
    if recipe.pretrain.data.sources:
        from sharding.reading import dataset_source as source

        contents = [
            source.open_source(
                source.DatasetSource(one.folder, one.split, one.weight), cache=None
            ).content
            for one in recipe.pretrain.data.sources
        ]
        words["pretrain.data.sources"] = sha256_of(contents)
    return words


def check_published(recipe: Recipe) -> None:
    """ValueError where published weights that the student starts from cannot be loaded, or do not
    fit: better now than after days of distilling."""
    if recipe.student.pretrained_cnn or recipe.student.pretrained_text:
        from stages.student.checkpoints.pretrained import (
            check_pretrained,  # heavy, and seldom needed
        )

        check_pretrained(recipe.student)


def _models_from_elsewhere(recipe: Recipe) -> dict[str, str]:
    """Sizes and times only: files of features may be hundreds of gigabytes, and distill itself
    looks closer before it does a shard again."""
    model, features = recipe.distill.detectron2, recipe.distill.features
    words = {}
    similarity = recipe.distill.similarity
    if similarity.kind != "lexical" and os.path.isdir(similarity.model):
        words["distill.similarity.model"] = _stamp(os.path.join(similarity.model, "*"))
    if model is not None:
        words["distill.detectron2"] = _stamp(model.config_file, model.weights, model.labels)
    if recipe.distill.transformers is not None:
        other = recipe.distill.transformers
        words["distill.transformers"] = _stamp(os.path.join(other.model, "*"), other.labels)
    if features is not None:
        words["distill.features"] = _stamp(
            features.path, features.predictions, features.labels, features.attributes
        )
    return words


def _stamp(*patterns: str | None) -> str:
    """A hash of what the patterns match: paths, sizes and times of last change."""
    paths: list[str] = []
    for pattern in patterns:
        if pattern is not None:
            paths += [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
    stats = [(path, os.stat(path)) for path in paths]
    return sha256_of([[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats])
