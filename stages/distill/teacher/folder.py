"""A trained teacher on disk.

Reached from `stages/distill/teach.py` (writes) and by whoever wants a teacher (reads). A folder
holds `model.safetensors` (weights), `names.json` (labels and attributes by number) and, written
last, `config.json` (the net's sizes and the fingerprint of all three). A blind teacher's folder has
the same files, with no net, no names and no weights.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from sharding.atomic import sha256_file, sha256_of, write_bytes, write_json
from stages.distill.teacher.blind import BlindTeacher
from stages.distill.teacher.detect import Teacher
from stages.distill.teacher.faster_rcnn import FasterRCNN
from stages.distill.teacher.net_config import net_from_json

SCHEMA = "boxless/teacher/1"
CONFIG, NAMES, WEIGHTS = "config.json", "names.json", "model.safetensors"


class TeacherError(ValueError):
    """A teacher folder that cannot be used."""


def save_teacher(folder: Path, model: FasterRCNN, *, label_names: list[str],
                 attribute_names: list[str]) -> str:
    """Writes the folder and returns the teacher's fingerprint."""
    weights = {name: tensor.detach().cpu().contiguous()
               for name, tensor in model.state_dict().items()}
    # A folder in between two teachers has no config.json, so it passes for neither.
    (folder / CONFIG).unlink(missing_ok=True)
    write_bytes(folder / WEIGHTS, safetensors.torch.save(weights))
    write_json(folder / NAMES, {"labels": label_names, "attributes": attribute_names})
    net = dataclasses.asdict(model.config)
    fingerprint = _fingerprint(folder, net, label_names, attribute_names)
    write_json(folder / CONFIG, {"schema": SCHEMA, "net": net, "fingerprint": fingerprint})
    return fingerprint


def save_blind_teacher(folder: Path) -> None:
    """Writes the folder of a teacher that sees nothing."""
    write_bytes(folder / WEIGHTS, safetensors.torch.save({}))
    write_json(folder / NAMES, {"labels": [], "attributes": []})
    fingerprint = _fingerprint(folder, {}, [], [])
    write_json(folder / CONFIG, {"schema": SCHEMA, "net": None, "fingerprint": fingerprint})


def copy_teacher(given: Path, folder: Path) -> None:
    """Puts the teacher of folder `given` into `folder`. Raises TeacherError where it is none."""
    load_teacher(given)
    (folder / CONFIG).unlink(missing_ok=True)
    for name in (WEIGHTS, NAMES, CONFIG):
        write_bytes(folder / name, (given / name).read_bytes())


def load_teacher(folder: Path) -> Teacher | BlindTeacher:
    """The teacher of `folder`, on the GPU where there is one.

    Raises TeacherError naming the file, what was got and what to do when a file is missing, odd,
    or not of the same teacher as the others, or when weights do not fit or are not finite.
    """
    config = _read_json(folder / CONFIG)
    names = _read_json(folder / NAMES)
    if isinstance(config, dict) and "net" in config and config["net"] is None:
        return BlindTeacher(_fingerprint(folder, {}, [], []))
    try:
        labels, attributes = list(names["labels"]), list(names["attributes"])
        net = net_from_json(config["net"])
        fingerprint = config["fingerprint"]
        if config["schema"] != SCHEMA:
            raise ValueError(f"schema {config['schema']!r}")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise TeacherError(
            f"{folder}: got {type(error).__name__}: {error}, expected a teacher of schema "
            f"{SCHEMA} in {CONFIG} and {NAMES}; run boxless teach again") from error
    model = FasterRCNN(net, num_labels=len(labels), num_attributes=len(attributes))
    _load_weights(model, folder / WEIGHTS)
    if (got := _fingerprint(folder, config["net"], labels, attributes)) != fingerprint:
        raise TeacherError(
            f"{folder}: got files of fingerprint {got}, expected the {fingerprint} of {CONFIG}: "
            "one of them was changed or is of another teacher; run boxless teach again")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Teacher(model.to(device), label_names=labels, attribute_names=attributes,
                   fingerprint=fingerprint)


def _fingerprint(folder: Path, net: dict[str, Any], labels: list[str], attributes: list[str]
                 ) -> str:
    """SHA-256 over everything that decides what the teacher sees."""
    return sha256_of({"schema": SCHEMA, "net": net, "labels": labels, "attributes": attributes,
                      "weights": sha256_file(folder / WEIGHTS)})


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TeacherError(
            f"{path}: got {error}, expected a file of a finished teacher; run boxless teach "
            "to its end") from error


def _load_weights(model: FasterRCNN, path: Path) -> None:
    try:
        weights: dict[str, Tensor] = safetensors.torch.load_file(path)
        model.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise TeacherError(
            f"{path}: got weights that do not fit the net of {CONFIG} ({error}); run boxless "
            "teach again") from error
    odd = [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]
    if odd:
        raise TeacherError(
            f"{path}: got numbers that are not finite in {', '.join(odd)}; run boxless teach "
            "again with a lower learning rate")
