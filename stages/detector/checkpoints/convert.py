"""Converts a checkpoint of another project to a teacher's folder.

`read_checkpoint` opens the file, whichever of detectron2's and torch's kinds it is, `weights.py`
makes a net of ours of it, and `teacher_folder.py` writes it with the names of its labels, which the
weights do not hold, and a card that says where it is from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sharding.writing.atomic import sha256_file
from stages.detector.checkpoints.checkpoint_error import CheckpointError
from stages.detector.checkpoints.families import FAMILIES, Family
from stages.detector.checkpoints.names_file import read_names
from stages.detector.checkpoints.pickled_arrays import Array, tensor_array
from stages.detector.checkpoints.pickles import read_pickle
from stages.detector.checkpoints.torch_files import (
    LEGACY_HEAD,
    ZIP_HEAD,
    read_safetensors,
    read_torch,
)
from stages.detector.checkpoints.weights import num_names, read_net
from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.model.meta_init import put_weights, shapes_only
from stages.detector.model_card import Card
from stages.detector.net_config import TeacherConfig
from stages.detector.teacher_folder import CONFIG, save_teacher

_WRAPPERS = ("model", "state_dict")  # detectron2 and fvcore; many others
_PARALLEL = "module."  # before every name where a model was saved inside DistributedDataParallel


def convert(
    checkpoint: Path,
    *,
    family: Family,
    labels: Path,
    attributes: Path | None,
    license: str,
    out: Path,
    log: Callable[[str], None],
) -> str:
    """Writes the teacher of `checkpoint` to the folder `out`; returns its fingerprint.

    labels, attributes: files of names (`names_file.py`); attributes where the weights know some.
    license: free text for the card. log: receives each step; large files take seconds
    in each. Raises CheckpointError where the file cannot be read, is of another family, holds
    numbers that are not finite, or where names and weights do not fit; ValueError for a bad license
    or an `out` that holds something already.
    """
    if (out / CONFIG).exists():
        raise CheckpointError(
            f"{out}: got a folder that holds a {CONFIG} already, expected a new one; name another "
            "or remove it"
        )
    label_names = read_names(labels)
    attribute_names = [] if attributes is None else read_names(attributes)
    log(f"reading {checkpoint}")
    card = Card(
        family=family.name,
        source=checkpoint.name,
        license=license,
        source_sha256=_sha256(checkpoint),
    )
    weights = read_checkpoint(checkpoint)
    log(f"fitting {len(weights)} arrays into a net")
    config, state = _read_net(checkpoint, weights, family)
    _check_names(config, state, labels, len(label_names), attributes, len(attribute_names))
    with shapes_only():
        model = FasterRCNN(config, num_labels=len(label_names), num_attributes=len(attribute_names))
    put_weights(model, state)
    log(f"writing {out}")
    return save_teacher(
        out, model, label_names=label_names, attribute_names=attribute_names, card=card
    )


def read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """The weights in `path` by their names, whichever kind of file it is; no code in it is run.

    What the file starts with decides: a pickle of arrays (detectron2's .pkl), torch.save's two
    formats (.pth, .pt) or safetensors. The dict is taken out of "model" or "state_dict", what lies
    beside it (optimizer, scheduler, iteration) is left, and "module." before all names is taken
    off. Arrays may be read-only or views of the file. Raises CheckpointError for other files, for
    Caffe2's, and for values that are no arrays.
    """
    weights = _unwrap(path, _read(path))
    arrays = {name: _array(value) for name, value in weights.items()}
    odd = [
        f"{name} ({type(weights[name]).__name__})"
        for name, array in arrays.items()
        if array is None
    ]
    if odd or not arrays:
        got = (
            f"{len(odd)} values that are not arrays, as {', '.join(odd[:5])}" if odd else "nothing"
        )
        raise CheckpointError(
            f"{path}: got {got}, expected the state_dict of a detector, or a dict that holds it as "
            "'model'"
        )
    found = {name: array for name, array in arrays.items() if array is not None}
    if all(name.startswith(_PARALLEL) for name in found):
        return {name.removeprefix(_PARALLEL): array for name, array in found.items()}
    return found


def _read(path: Path) -> Any:
    """What is in the file, by its kind."""
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise CheckpointError(
            f"{path}: got {error}, expected a checkpoint: .pkl, .pth, .pt or .safetensors"
        ) from error
    if head.startswith((ZIP_HEAD, LEGACY_HEAD)):
        return read_torch(path)
    if head[8:9] == b"{":  # after the length of the header, which is JSON
        return read_safetensors(path)
    if head[:1] in (b"\x80", b"(", b"}", b"c"):
        return read_pickle(path)
    raise CheckpointError(
        f"{path}: got a file that begins with {head!r}, expected a checkpoint: a pickle of arrays "
        "(.pkl), a file of torch.save (.pth, .pt) or .safetensors; a page of a web site is often "
        "what one gets instead, fetch it again"
    )


def _unwrap(path: Path, value: Any) -> Mapping[str, Any]:
    """The innermost of the dicts that checkpoints wrap weights in."""
    while isinstance(value, Mapping):
        if "blobs" in value:
            raise CheckpointError(
                f"{path}: got Caffe2's blobs (of Detectron, the one before detectron2), expected "
                "weights by the names of detectron2; take detectron2's own, or convert them with "
                "what detectron2 has for it"
            )
        inner = [value[name] for name in _WRAPPERS if isinstance(value.get(name), Mapping)]
        if not inner:
            break
        value = inner[0]
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise CheckpointError(
            f"{path}: got a {type(value).__name__}, expected weights by name: the state_dict of a "
            "detector, or a dict that holds it as 'model'"
        )
    return value


def _array(value: Any) -> np.ndarray | None:
    """A weight as an array; None for what is none."""
    if isinstance(value, Array):
        value = value.value
    if isinstance(value, Tensor):
        try:
            value = tensor_array(value)
        except ValueError:
            return None
    if isinstance(value, (bool, int, float, np.number)):
        value = np.asarray(value)  # counters of batches, in some old files
    is_array = isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
    return value if is_array else None


def _sha256(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: got {error}, expected a checkpoint") from error


def _read_net(
    path: Path, weights: Mapping[str, np.ndarray], family: Family
) -> tuple[TeacherConfig, dict[str, Tensor]]:
    """`read_net`, whose message then names the file and, if there are any, families that fit."""
    try:
        return read_net(weights, family)
    except CheckpointError as error:
        others = [other.name for other in FAMILIES.values() if _fits(weights, other)]
        hint = f"; these weights fit the family {' or '.join(others)}" if others else ""
        raise CheckpointError(f"{path}: {error}{hint}") from error


def _fits(weights: Mapping[str, np.ndarray], family: Family) -> bool:
    try:
        read_net(weights, family)
    except CheckpointError:
        return False
    return True


def _check_names(
    config: TeacherConfig,
    state: Mapping[str, Tensor],
    labels: Path,
    num_labels: int,
    attributes: Path | None,
    num_attributes: int,
) -> None:
    """CheckpointError where there are more or fewer names than the weights have numbers for."""
    expected_labels, expected_attributes = num_names(config, state)
    if num_labels != expected_labels:
        raise CheckpointError(
            f"{labels}: got {num_labels} names, the weights have {expected_labels} classes "
            "(background not counted); give the list that they were trained with"
        )
    if num_attributes != expected_attributes:
        got = f"{attributes}: got {num_attributes} names" if attributes else "attributes: got none"
        fix = (
            "give the list that they were trained with"
            if expected_attributes
            else "leave the file out"
        )
        raise CheckpointError(f"{got}, the weights have {expected_attributes} attributes; {fix}")
