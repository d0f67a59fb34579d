"""`boxless teach`: trains a Faster R-CNN on image shards whose pictures have true boxes.

Writes to `out`, the teacher folder of the run:

    checkpoint.safetensors   while it runs: weights, the optimizer's state, steps done
    best.safetensors         while it runs: the weights with the best AP50 on held-out pictures
    metrics.jsonl            losses, learning rate and seconds, a line every few steps
    model.safetensors, names.json, config.json   the teacher (`teacher_folder.py`)
    scores.json              AP on held-out pictures; written last

Stopped at any moment and started again it ends with the same weights, bit for bit, on the same
machine with the same number of threads and ranks: a step's pictures and random numbers are
functions of (seed, step, picture), and the checkpoint holds the rest. Another number of ranks
differs by the order of sums.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import nn

from sharding.format.catalog import catalog_sha256, read_catalog
from sharding.writing.atomic import sha256_file, sha256_of, write_json, write_text
from stages.cpu_threads import cpu_threads
from stages.detector.device import pick_device
from stages.detector.evaluation.evaluate import score_teacher, scores_in_words
from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.net_config import ResNetConfig
from stages.detector.null_teacher import NullTeacher
from stages.detector.predictor import Teacher
from stages.detector.teacher_folder import (
    copy_teacher,
    load_teacher,
    save_null_teacher,
    save_teacher,
)
from stages.detector.training.config import TeachConfig
from stages.detector.training.initial_weights import (
    freeze,
    load_initial_weights,
    weights_file,
)
from stages.detector.training.labeled_pictures import LabeledPictures
from stages.detector.training.loss_scaling import LossScale, start_of
from stages.detector.training.norms.frozen_norm import folded
from stages.detector.training.norms.synced_norm import sync_norms
from stages.detector.training.optimizer import (
    build_optimizer,
    learning_rate,
)
from stages.detector.training.training_set import TrainingSet
from stages.detector.training.training_state import (
    State,
    load_checkpoint,
    read_state,
    save_checkpoint,
)
from stages.detector.training.training_step import TeachError, take_step
from stages.distributed import Ranks, joined_ranks
from stages.progress import Progress
from stages.tf32 import TF32, allow_tf32, check_tf32

NO_BOXES = (
    "no picture has true boxes to train a teacher from, so the student will learn from captions "
    "alone: OMVM and PRA have no targets. A source with boxes (toy, nlvr, or coco with "
    "ingest.instances) or a teacher from elsewhere (teach.given) changes that."
)
CHECKPOINT, BEST = "checkpoint.safetensors", "best.safetensors"
METRICS, SCORES = "metrics.jsonl", "scores.json"


class Names(NamedTuple):
    """Names of the labels and attributes in the ground truth, by number."""

    labels: list[str]
    attributes: list[str]


class Job(NamedTuple):
    """One training: what it is of, what it is scored on, where it is written, by which ranks."""

    config: TeachConfig
    names: Names
    heldout: LabeledPictures
    out: Path
    fingerprint: str
    ranks: Ranks


def teach(config: TeachConfig, *, seed: int, images: Path, out: Path) -> None:
    """Trains a teacher on the split "train" of `images` and writes it to `out`.

    A finished `out` of the same settings and pictures is left as it is; one of others is trained
    again. With `config.given`, that teacher is copied; where no picture has true boxes, it is a
    null teacher, and a line on screen says so. Every rank that a launcher started calls it; they
    share the pictures of each step, and rank 0 writes. Raises TeachError where a loss is not
    finite, TeacherError where `given` is no teacher, ShardError where shards are missing or
    damaged.
    """
    with joined_ranks(on_gpus=torch.cuda.is_available()) as ranks:
        fingerprint = _fingerprint(config, seed, images)
        if ranks.agreed(ranks.is_first and _is_finished(out, fingerprint)):
            return
        if ranks.is_first:
            (out / SCORES).unlink(missing_ok=True)
        if config.given is not None:
            if ranks.is_first:
                copy_teacher(Path(config.given), out)
            return
        names = _read_names(images)
        labelled = LabeledPictures(
            images, "train", label_names=names.labels, attribute_names=names.attributes
        )
        if not any(len(labelled.truth(index).boxes) for index in range(len(labelled))):
            if ranks.is_first:
                save_null_teacher(out)
                Console().print(f"[yellow]note[/]: {NO_BOXES}")
            return
        heldout = LabeledPictures(
            images, "heldout", label_names=names.labels, attribute_names=names.attributes
        )
        check_tf32("teach.precision", config.precision)
        job = Job(config, names, heldout, out, fingerprint, ranks)
        with cpu_threads(config.num_threads):
            _train_and_score(TrainingSet(labelled, config, seed=seed, device=pick_device()), job)


def _train_and_score(training_set: TrainingSet, job: Job) -> None:
    """Train to the end, then write the teacher and its scores."""
    config, names, out = job.config, job.names, job.out
    model, initialized = build_model(config, names, training_set.seed)
    if job.ranks.size > 1:
        sync_norms(model)
    model.to(training_set.device)
    optimizer = build_optimizer(model, config, initialized=initialized)
    seconds = _train(model, optimizer, training_set, job)
    if job.ranks.is_first:
        best = read_state(out / BEST)
        if best is not None and best.fingerprint == job.fingerprint:
            load_checkpoint(out / BEST, model, None)
        save_teacher(out, folded(model), label_names=names.labels, attribute_names=names.attributes)
    job.ranks.agreed(True)  # the teacher is written
    scores = _score(load_teacher(out), job, show_progress=True)
    if job.ranks.is_first:
        for line in scores_in_words(scores):
            print(f"teach: {line}", flush=True)
        write_json(
            out / SCORES,
            {
                **scores,
                "training": job.fingerprint,
                "num_steps": config.num_steps,
                "best_step": best.num_steps if best is not None else config.num_steps,
                "seconds": round(seconds, 1),
            },
        )
        for name in (CHECKPOINT, BEST):
            (out / name).unlink(missing_ok=True)


def build_model(config: TeachConfig, names: Names, seed: int) -> tuple[FasterRCNN, set[str] | None]:
    """The net as `seed` and the published weights initialise it, and the names of the parameters
    that these gave; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FasterRCNN(
            config.net, num_labels=len(names.labels), num_attributes=len(names.attributes)
        )
    if isinstance(config.net.backbone, ResNetConfig):
        for layer in model.proposal_network.children():  # as detectron2; the toy's are not
            assert isinstance(layer.bias, torch.Tensor)
            nn.init.zeros_(layer.bias)
    initialized = None
    if config.initial_weights is not None:
        initialized = load_initial_weights(model, Path(config.initial_weights))
    freeze(model, config.freeze_at)
    return model, initialized


def _train(
    model: FasterRCNN, optimizer: torch.optim.Optimizer, training_set: TrainingSet, job: Job
) -> float:
    """Trains `model` to the end, from the checkpoint if there is one; returns seconds in all."""
    config, out, fingerprint = job.config, job.out, job.fingerprint
    is_first = job.ranks.is_first
    state = _continue_from(job, model, optimizer)
    scale = LossScale(factor=state.loss_scale, sound_steps=state.sound_steps)
    began = time.monotonic() - state.seconds
    model.train()
    with (
        Progress(
            "teach", total=config.num_steps, unit="steps", start=state.num_steps, show=is_first
        ) as progress,
        open(out / METRICS if is_first else os.devnull, "a", encoding="utf-8") as metrics,
        allow_tf32(config.precision == TF32),
    ):
        for step in range(state.num_steps, config.num_steps):
            figures = take_step(model, optimizer, training_set, job.ranks, scale, step)
            progress.advance(loss=figures["loss"])
            num_steps, seconds = step + 1, time.monotonic() - began
            is_last = num_steps == config.num_steps
            is_saved = num_steps % config.checkpoint_every_steps == 0 or is_last
            every = config.evaluate_every_steps
            is_scored = every > 0 and (num_steps % every == 0 or is_last)
            if is_saved or is_scored:
                _check_weights(model, num_steps)
            if num_steps % config.log_every_steps == 0 or is_last:
                line = {
                    "step": num_steps,
                    **figures,
                    "learning_rate": learning_rate(step, config),
                    "seconds": round(seconds, 3),
                }
                metrics.write(json.dumps(line) + "\n")
                metrics.flush()
            if is_scored:
                _keep_best(model, num_steps, seconds, job)
            if not is_first:
                continue
            if is_saved:
                os.fsync(metrics.fileno())
                state = State(
                    fingerprint,
                    num_steps,
                    seconds,
                    loss_scale=scale.factor,
                    sound_steps=scale.sound_steps,
                )
                save_checkpoint(out / CHECKPOINT, model, optimizer, state)
    return time.monotonic() - began


def _check_weights(model: FasterRCNN, num_steps: int) -> None:
    """Raises TeachError where a weight or a statistic is not finite: none such is saved, and all
    ranks, which have the same, raise it."""
    odd = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if odd:
        raise TeachError(
            f"step {num_steps}: got weights that are not finite ({', '.join(odd[:3])}), expected "
            "none: they are not saved, and the last checkpoint is intact; lower "
            "teach.learning_rate or raise teach.warmup_steps"
        )


def _keep_best(model: FasterRCNN, num_steps: int, seconds: float, job: Job) -> None:
    """Scores the weights on the held-out pictures and keeps them where none were better. A
    collective.

    After a stop the same steps give the same scores, so the best of a run that was stopped is that
    of one that was not.
    """
    teacher = Teacher(
        folded(model),
        label_names=job.names.labels,
        attribute_names=job.names.attributes,
        fingerprint=job.fingerprint,
    )
    score = _score(teacher, job, show_progress=False)["ap50"]["value"]
    model.train()
    if not job.ranks.is_first:
        return
    best = read_state(job.out / BEST)
    if best is not None and best.fingerprint == job.fingerprint and best.score is not None:
        if score is None or score < best.score:
            return
    save_checkpoint(job.out / BEST, model, None, State(job.fingerprint, num_steps, seconds, score))
    Console().print(
        f"teach: step {num_steps}, AP50 on held-out pictures {score or 0:.4f}, the best"
    )


def _continue_from(job: Job, model: FasterRCNN, optimizer: torch.optim.Optimizer) -> State:
    """Restores the checkpoint of this very training, if there is one, and says how far it is.

    metrics.jsonl is cut to the steps that the checkpoint holds, so that no step is there twice.
    Every rank has read the checkpoint when it returns.
    """
    out = job.out
    state = read_state(out / CHECKPOINT)
    if state is None or state.fingerprint != job.fingerprint:
        scale = start_of(job.config.precision)
        state = State(job.fingerprint, 0, 0.0, loss_scale=scale.factor)
    else:
        load_checkpoint(out / CHECKPOINT, model, optimizer)
    if job.ranks.is_first:
        write_text(out / METRICS, "".join(_lines_until(out / METRICS, state.num_steps)))
    job.ranks.agreed(True)
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
    settings = dataclasses.asdict(config)
    # Left out where they are off, so that what was trained before they came still counts.
    if not config.late_steps:
        del settings["late_steps"], settings["late_scale_jitter"]
    if not config.net.boxes.second_classifier:
        del settings["net"]["boxes"]["second_classifier"]
    parts = {"config": settings, "seed": seed, "images": catalog_sha256(images)}
    if config.initial_weights is not None:
        weights = weights_file(Path(config.initial_weights))
        parts["initial_weights"] = sha256_file(weights) if weights.is_file() else None
    return sha256_of(parts)


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


def _score(teacher: Teacher | NullTeacher, job: Job, *, show_progress: bool) -> dict[str, Any]:
    """Scores of a teacher on the held-out pictures. A collective."""
    assert isinstance(teacher, Teacher)
    return score_teacher(teacher, job.heldout, job.ranks, show_progress=show_progress)
