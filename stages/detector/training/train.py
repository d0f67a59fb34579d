"""`boxless teach`: trains a Faster R-CNN on image shards whose pictures have true boxes.

Reached from `pipeline`. Writes to `out`, the teacher folder of the run:

    checkpoint.safetensors   while it runs: weights, momentum, steps done
    metrics.jsonl            losses, learning rate and seconds, a line every few steps
    model.safetensors, names.json, config.json   the teacher (`teacher/folder.py`)
    scores.json              AP50 on held-out pictures; written last

Stopped at any moment and started again it ends with the same weights, bit for bit, on the same
machine with the same number of threads: a step's pictures and random numbers are functions of
(seed, step), and the checkpoint holds the rest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from sharding.format.catalog import catalog_sha256, read_catalog
from sharding.writing.atomic import sha256_of, write_json, write_text
from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.predictor import Teacher
from stages.detector.teacher_folder import (
    copy_teacher,
    load_teacher,
    save_null_teacher,
    save_teacher,
)
from stages.detector.training.config import TeachConfig
from stages.detector.training.evaluate import score_teacher
from stages.detector.training.labeled_pictures import LabeledPictures
from stages.detector.training.losses import detection_losses
from stages.detector.training.training_set import TrainingSet, step_random
from stages.detector.training.training_state import (
    State,
    load_checkpoint,
    read_state,
    save_checkpoint,
)
from stages.progress import Progress

NO_BOXES = (
    "no picture has true boxes to train a teacher from, so the student will learn from captions "
    "alone: OMVM and PRA have nothing to go by. A source with boxes (toy, nlvr, or coco with "
    "ingest.instances) or a teacher from elsewhere (teach.given) changes that."
)
CHECKPOINT, METRICS, SCORES = "checkpoint.safetensors", "metrics.jsonl", "scores.json"


class TeachError(ValueError):
    """Training cannot start or go on; the text says what was got and what to do."""


class Names(NamedTuple):
    """What the pictures' truth speaks of, by number."""

    labels: list[str]
    attributes: list[str]


def teach(config: TeachConfig, *, seed: int, images: Path, out: Path) -> None:
    """Trains a teacher on the split "train" of `images` and writes it to `out`.

    A finished `out` of the same settings and pictures is left as it is; one of others is trained
    anew. With `config.given`, that teacher is copied; where no picture has true boxes, the teacher
    is a blind one, and a word on screen says so. Raises TeachError where a loss is not finite,
    TeacherError where `given` is no teacher, ShardError where shards are missing or damaged.
    """
    fingerprint = _fingerprint(config, seed, images)
    if _is_finished(out, fingerprint):
        return
    (out / SCORES).unlink(missing_ok=True)
    if config.given is not None:
        copy_teacher(Path(config.given), out)
        return
    names = _read_names(images)
    labelled = LabeledPictures(
        images, "train", label_names=names.labels, attribute_names=names.attributes
    )
    if not any(len(labelled.truth(index).boxes) for index in range(len(labelled))):
        save_null_teacher(out)
        Console().print(f"[yellow]note[/]: {NO_BOXES}")
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training_set = TrainingSet(labelled, config, seed=seed, device=device)
    model = build_model(config, names, seed).to(device)
    with _cpu_threads(config.num_threads):
        seconds = _train(model, training_set, config, seed=seed, out=out, fingerprint=fingerprint)
        save_teacher(out, model, label_names=names.labels, attribute_names=names.attributes)
        scores = _score(images, out, names, config)
    write_json(
        out / SCORES,
        {
            **scores,
            "training": fingerprint,
            "num_steps": config.num_steps,
            "seconds": round(seconds, 1),
        },
    )
    (out / CHECKPOINT).unlink(missing_ok=True)


def build_model(config: TeachConfig, names: Names, seed: int) -> FasterRCNN:
    """The net as `seed` initialises it; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FasterRCNN(
            config.net, num_labels=len(names.labels), num_attributes=len(names.attributes)
        )


def build_optimizer(model: FasterRCNN, config: TeachConfig) -> torch.optim.SGD:
    """SGD with momentum; weight decay on weights only, not on biases and normalisation."""
    groups: list[dict[str, Any]] = [
        {
            "params": [parameter for parameter in model.parameters() if parameter.ndim > 1],
            "weight_decay": config.weight_decay,
        },
        {"params": [parameter for parameter in model.parameters() if parameter.ndim <= 1]},
    ]
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)


def learning_rate(step: int, config: TeachConfig) -> float:
    """Of `step` (from 0): a straight line up, then half a cosine down to nearly 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(config.num_steps - config.warmup_steps, 1)
    return config.learning_rate * (1 + math.cos(math.pi * done)) / 2


def take_step(
    model: FasterRCNN, optimizer: torch.optim.SGD, training_set: TrainingSet, step: int
) -> dict[str, float]:
    """One optimizer step on the batch of `step`; returns its losses by name, their weighted sum
    and the L2 norm of the gradients before clipping.

    Raises TeachError, before the weights change, if one of these is not finite.
    """
    config = training_set.config
    batch = training_set.batch(step)
    losses = detection_losses(model, batch, config, step_random(training_set.seed, step, "sample"))
    weights = {"attribute": config.attribute_weight}
    total = torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    values = {**losses, "loss": total, "gradient_norm": norm}
    figures = {name: value.item() for name, value in values.items()}
    if not all(map(math.isfinite, figures.values())):
        raise TeachError(
            f"step {step}: got losses {figures} on pictures {', '.join(batch.keys)}, expected "
            "finite numbers; lower teach.learning_rate or raise teach.warmup_steps"
        )
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config)
    optimizer.step()
    return figures


@contextlib.contextmanager
def _cpu_threads(num_threads: int) -> Iterator[None]:
    """PyTorch's threads inside the block, 0 for its own choice; as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(
    model: FasterRCNN,
    training_set: TrainingSet,
    config: TeachConfig,
    *,
    seed: int,
    out: Path,
    fingerprint: str,
) -> float:
    """Trains `model` to the end, from the checkpoint if there is one; returns seconds in all."""
    optimizer = build_optimizer(model, config)
    state = _continue_from(out, fingerprint, model, optimizer)
    began = time.monotonic() - state.seconds
    model.train()
    with (
        Progress("teach", total=config.num_steps, unit="steps", start=state.num_steps) as progress,
        open(out / METRICS, "a", encoding="utf-8") as metrics,
    ):
        for step in range(state.num_steps, config.num_steps):
            figures = take_step(model, optimizer, training_set, step)
            progress.advance(loss=figures["loss"])
            num_steps, seconds = step + 1, time.monotonic() - began
            is_last = num_steps == config.num_steps
            if num_steps % config.log_every_steps == 0 or is_last:
                line = {
                    "step": num_steps,
                    **figures,
                    "learning_rate": learning_rate(step, config),
                    "seconds": round(seconds, 3),
                }
                metrics.write(json.dumps(line) + "\n")
                metrics.flush()
            if num_steps % config.checkpoint_every_steps == 0 or is_last:
                os.fsync(metrics.fileno())
                save_checkpoint(
                    out / CHECKPOINT, model, optimizer, State(fingerprint, num_steps, seconds)
                )
    return time.monotonic() - began


def _continue_from(
    out: Path, fingerprint: str, model: FasterRCNN, optimizer: torch.optim.SGD
) -> State:
    """Restores the checkpoint of this very training, if there is one, and says how far it is.

    metrics.jsonl is cut to the steps that the checkpoint holds, so that no step stands twice.
    """
    state = read_state(out / CHECKPOINT)
    if state is None or state.fingerprint != fingerprint:
        state = State(fingerprint, 0, 0.0)
    else:
        load_checkpoint(out / CHECKPOINT, model, optimizer)
    write_text(out / METRICS, "".join(_lines_until(out / METRICS, state.num_steps)))
    return state


def _lines_until(path: Path, num_steps: int) -> list[str]:
    """The whole lines of a metrics file up to a step; a line cut off by a kill is dropped."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    return [line for line in whole if json.loads(line)["step"] <= num_steps]


def _fingerprint(config: TeachConfig, seed: int, images: Path) -> str:
    """SHA-256 over all that decides the teacher."""
    return sha256_of(
        {"config": dataclasses.asdict(config), "seed": seed, "images": catalog_sha256(images)}
    )


def _is_finished(out: Path, fingerprint: str) -> bool:
    try:
        scores = json.loads((out / SCORES).read_bytes())
        load_teacher(out)
    except (OSError, ValueError):
        return False
    return scores.get("training") == fingerprint


def _read_names(images: Path) -> Names:
    about = read_catalog(images).metadata
    return Names(list(about.get("label_names", [])), list(about.get("attribute_names", [])))


def _score(images: Path, out: Path, names: Names, config: TeachConfig) -> dict[str, Any]:
    """Scores of the teacher in `out`, as it was written, on the held-out pictures."""
    labelled = LabeledPictures(
        images, "heldout", label_names=names.labels, attribute_names=names.attributes
    )
    teacher = load_teacher(out)
    assert isinstance(teacher, Teacher), out
    return score_teacher(teacher, labelled)
