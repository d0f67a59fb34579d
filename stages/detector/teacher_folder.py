"""Reads and writes a teacher's folder.

A folder holds `model.safetensors` (weights), `names.json` (labels and attributes by number),
`CARD.md` (for people) and, written last, `config.json` (the net's sizes, the card, and the
fingerprint of weights, names and net). A null teacher's folder has the first two and the last,
with no net, no names and no weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from boxless.errors import BoxlessError
from sharding.writing.atomic import sha256_file, sha256_of, write_bytes, write_json, write_text
from stages.detector.device import pick_device
from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.model.meta_init import put_weights, shapes_only
from stages.detector.model_card import Card, Sizes, page
from stages.detector.net_config import TeacherConfig
from stages.detector.net_json import net_from_json, net_to_json
from stages.detector.null_teacher import NullTeacher
from stages.detector.predictor import Teacher

SCHEMA = "boxless/teacher/2"
CONFIG, NAMES, WEIGHTS, CARD = "config.json", "names.json", "model.safetensors", "CARD.md"
_AGAIN = "run boxless teach or boxless convert again"


class TeacherError(BoxlessError):
    """A teacher folder that cannot be used."""


class About(NamedTuple):
    """What config.json and names.json say; net, card and sizes are None for a null teacher."""

    net: TeacherConfig | None
    labels: list[str]
    attributes: list[str]
    card: Card | None
    sizes: Sizes | None
    fingerprint: str


def save_teacher(
    folder: Path,
    model: FasterRCNN,
    *,
    label_names: list[str],
    attribute_names: list[str],
    card: Card = Card(),
) -> str:
    """Writes the folder and returns the teacher's fingerprint; `card` says where it is from."""
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    sizes = Sizes(
        num_labels=len(label_names),
        num_attributes=len(attribute_names),
        feature_size=model.config.boxes.feature_size,
        num_parameters=sum(tensor.numel() for tensor in weights.values()),
    )
    _empty(folder)
    data = safetensors.torch.save(weights)
    write_bytes(folder / WEIGHTS, data)
    write_json(folder / NAMES, {"labels": label_names, "attributes": attribute_names})
    net = net_to_json(model.config)
    fingerprint = _fingerprint(hashlib.sha256(data).hexdigest(), net, label_names, attribute_names)
    write_text(folder / CARD, page(card, sizes, fingerprint))
    write_json(
        folder / CONFIG,
        {
            "schema": SCHEMA,
            "net": net,
            "fingerprint": fingerprint,
            "card": dataclasses.asdict(card),
            "sizes": dataclasses.asdict(sizes),
        },
    )
    return fingerprint


def save_null_teacher(folder: Path) -> None:
    """Writes the folder of a teacher that finds no objects."""
    data = safetensors.torch.save({})
    _empty(folder)
    write_bytes(folder / WEIGHTS, data)
    write_json(folder / NAMES, {"labels": [], "attributes": []})
    fingerprint = _fingerprint(hashlib.sha256(data).hexdigest(), {}, [], [])
    write_json(folder / CONFIG, {"schema": SCHEMA, "net": None, "fingerprint": fingerprint})


def copy_teacher(given: Path, folder: Path) -> None:
    """Puts the teacher of folder `given` into `folder`. Raises TeacherError where it is none."""
    load_teacher(given)
    _empty(folder)
    for name in (WEIGHTS, NAMES, CARD, CONFIG):
        if (given / name).exists():  # a null teacher has no card
            write_bytes(folder / name, (given / name).read_bytes())


def _empty(folder: Path) -> None:
    """Removes the files that identify the teacher, so that half a folder loads as none."""
    for name in (CONFIG, CARD):
        (folder / name).unlink(missing_ok=True)


def load_teacher(folder: str | Path) -> Teacher | NullTeacher:
    """The teacher of `folder`, on this process's GPU where there is one.

    Raises TeacherError naming the file, what was got and what to do when a file is missing, odd,
    or not of the same teacher as the others, or when weights do not fit or are not finite.
    """
    folder = Path(folder)
    about = read_about(folder)
    if about.net is None:
        return NullTeacher(about.fingerprint)
    with shapes_only():
        model = FasterRCNN(
            about.net, num_labels=len(about.labels), num_attributes=len(about.attributes)
        )
    _load_weights(model, folder / WEIGHTS)
    _check_fingerprint(folder, about)
    return Teacher(
        model.to(pick_device()),
        label_names=about.labels,
        attribute_names=about.attributes,
        fingerprint=about.fingerprint,
    )


def read_about(folder: Path) -> About:
    """What the folder states about its teacher, without its weights. Raises TeacherError."""
    config = _read_json(folder / CONFIG)
    names = _read_json(folder / NAMES)
    try:
        if config["schema"] != SCHEMA:
            raise BoxlessError(f"schema {config['schema']!r}")
        labels, attributes = _names(names["labels"]), _names(names["attributes"])
        if config["net"] is None:
            return About(None, [], [], None, None, config["fingerprint"])
        about = About(
            net_from_json(config["net"]),
            labels,
            attributes,
            _card(config["card"]),
            Sizes(**config["sizes"]),
            config["fingerprint"],
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise TeacherError(
            f"{folder}: got {type(error).__name__}: {error}, expected a teacher of schema "
            f"{SCHEMA} in {CONFIG} and {NAMES}; {_AGAIN}"
        ) from error
    return about


def _card(values: dict[str, Any]) -> Card:
    """The card; folders written before 0.2 have its license under "licence"."""
    values = dict(values)
    if "licence" in values:
        values["license"] = values.pop("licence")
    return Card(**values)


def _names(names: Any) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BoxlessError("names that are not a list of text")
    return names


def _check_fingerprint(folder: Path, about: About) -> None:
    """TeacherError where net, names and weights are not those that the fingerprint is of."""
    assert about.net is not None, folder
    net = net_to_json(about.net)
    got = _fingerprint(sha256_file(folder / WEIGHTS), net, about.labels, about.attributes)
    if got != about.fingerprint:
        raise TeacherError(
            f"{folder}: got files of fingerprint {got}, expected the {about.fingerprint} of "
            f"{CONFIG}: one of them was changed or is of another teacher; {_AGAIN}"
        )


def _fingerprint(
    weights: str, net: dict[str, Any], labels: list[str], attributes: list[str]
) -> str:
    """SHA-256 over everything that decides what the teacher detects; `weights` is their file's."""
    return sha256_of(
        {
            "schema": SCHEMA,
            "net": net,
            "labels": labels,
            "attributes": attributes,
            "weights": weights,
        }
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise TeacherError(
            f"{path}: got {error}, expected a file of a finished teacher; {_AGAIN}, to its end"
        ) from error


def _load_weights(model: FasterRCNN, path: Path) -> None:
    try:
        weights: dict[str, Tensor] = safetensors.torch.load_file(path)
        put_weights(model, weights)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise TeacherError(
            f"{path}: got weights that do not fit the net of {CONFIG} ({error}); {_AGAIN}"
        ) from error
    odd = [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]
    if odd:
        some = ", ".join(odd[:8]) + (f" and {len(odd) - 8} more" if len(odd) > 8 else "")
        raise TeacherError(
            f"{path}: got numbers that are not finite in {some}; {_AGAIN}: teach with a lower "
            "learning rate, or convert another checkpoint"
        )
