"""Writes the files of a task from image shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sharding.format.schema import Sample
from stages.transfer.predictor import read_split
from stages.transfer.toy_tasks.captions import write_grounding, write_retrieval
from stages.transfer.toy_tasks.nlvr_corpus import is_of_nlvr, write_nlvr_corpus
from stages.transfer.toy_tasks.questions import write_vcr, write_vqa
from stages.transfer.toy_tasks.scene import IMAGES, Scene, scene_of
from stages.transfer.toy_tasks.statements import write_nlvr, write_nlvr2, write_snli_ve

NUM_HELDOUT_SCENES = 150
"""Toy scenes that a task is scored on, the first ones: some hundreds of examples of each task."""


def write_task_files(task: str, images: Path, out: Path) -> dict[str, Any]:
    """Write the files of a task from image shards into `out`; where they are, as fields of
    `TaskDataConfig`.

    The shards are those of the toy data set, or, for the task nlvr, of the corpus NLVR too. Raises
    ValueError where the samples do not carry the truth about their scenes.
    """
    values: dict[str, Any] = {}
    for split in ("train", "heldout"):
        samples = read_split(images, split)
        folder = out / split
        (folder / IMAGES).mkdir(parents=True, exist_ok=True)
        values |= _write(task, samples, folder, split)
        values[f"{split}_images"] = str(folder / IMAGES)
    if task == "retrieval":
        values |= {"train_splits": ("train",), "heldout_split": "test"}
    return values


def _write(task: str, samples: Sequence[Sample], folder: Path, split: str) -> dict[str, Any]:
    if task == "nlvr" and is_of_nlvr(samples[0]):
        return write_nlvr_corpus(samples, folder, split)
    most = len(samples) if split == "train" else NUM_HELDOUT_SCENES
    scenes = [scene_of(number, sample) for number, sample in enumerate(samples[:most])]
    return _WRITERS[task](scenes, folder, split)


_WRITERS: dict[str, Callable[[Sequence[Scene], Path, str], dict[str, Any]]] = {
    "vqa": write_vqa,
    "nlvr2": write_nlvr2,
    "nlvr": write_nlvr,
    "snli_ve": write_snli_ve,
    "vcr": write_vcr,
    "retrieval": write_retrieval,
    "grounding": write_grounding,
}
