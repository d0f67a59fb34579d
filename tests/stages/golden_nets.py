"""The nets behind tests/data/golden/detectron2_*.npz: weights that a rule makes, and their configs.

The files hold what detectron2 0.6 (commit 02b5c4e2) gave on CPU in float32 for small nets of the
model zoo's shapes (R50-C4, the same with an attribute head, R50-FPN). Their weights are not stored:
each array comes from a generator seeded by its name, scaled by the first entry of a table whose
text is part of the name. `state_sum` and `state_first` in the files tell whether the rule was
followed.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from pathlib import Path

import numpy as np
import torch

from stages.detector.checkpoints.families import DETECTRON2, Family
from stages.detector.checkpoints.weights import num_names, read_net
from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.net_config import TeacherConfig

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
NAMES = ("c4", "c4_attributes", "fpn")

_NORM = [("norm.weight", 1.0), ("norm.bias", -0.3), ("norm.", 0.0), (".bias", 0.0)]
_CONVOLUTIONS = [("stem.conv1", 0.03), ("conv3", 0.6), ("shortcut", 0.8)]
_C4 = [
    ("conv3.norm.bias", -0.1),
    ("shortcut.norm.bias", -0.1),
    *_NORM,
    *_CONVOLUTIONS,
    ("rpn_head.conv", 1.4),
    ("objectness_logits", 3.0),
    ("anchor_deltas", 0.4),
    ("bbox_pred", 3.0),
]
SCALES = {
    "c4": [*_C4, ("cls_score", 8.0), ("", 1.6)],
    "c4_attributes": [
        *_C4,
        ("cls_score", 9.0),
        ("obj_embed", 4.0),
        ("attribute_predictor.fc", 3.0),
        ("attr_score", 2.0),
        ("", 1.6),
    ],
    "fpn": [
        ("conv3.norm.bias", 0.0),
        ("shortcut.norm.bias", 0.0),
        *_NORM,
        *_CONVOLUTIONS,
        ("fpn_", 1.0),
        ("objectness_logits", 2.0),
        ("anchor_deltas", 0.25),
        ("cls_score", 1.5),
        ("bbox_pred", 1.0),
        ("", 1.4),
    ],
}


@functools.lru_cache(maxsize=None)
def arrays_of(name: str) -> dict[str, np.ndarray]:
    """The arrays of one file."""
    with np.load(GOLDEN / f"detectron2_{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


@functools.lru_cache(maxsize=None)
def weights_of(name: str) -> dict[str, np.ndarray]:
    """The checkpoint by detectron2's names, checked against the file."""
    golden = arrays_of(name)
    weights = {}
    for key, shape, total, first in zip(
        golden["state_keys"], golden["state_shapes"], golden["state_sum"], golden["state_first"]
    ):
        sizes = tuple(int(size) for size in str(shape).replace(",", "x").split("x"))
        array = _made_up(f"{golden['salt']}/{key}", str(key), sizes, SCALES[name])
        assert array.ravel()[0] == first and np.isclose(array.astype(np.float64).sum(), total)
        weights[str(key)] = array
    return weights


def _made_up(
    seed: str, key: str, shape: tuple[int, ...], scales: list[tuple[str, float]]
) -> np.ndarray:
    random = np.random.default_rng(zlib.crc32(seed.encode()))
    scale = next(number for part, number in scales if part in key)
    if key.endswith("norm.running_var"):
        array = 1 + 0.1 * random.random(shape)
    elif ".norm." in key or len(shape) == 1:
        array = scale + 0.1 * random.standard_normal(shape)
    else:
        array = scale * random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return array.astype(np.float32)


def family_of(name: str) -> Family:
    """detectron2's family with the settings of one file."""
    replace = dataclasses.replace
    assert DETECTRON2.pyramid_proposals is not None
    if name == "fpn":
        return replace(
            DETECTRON2,
            picture=replace(DETECTRON2.picture, shorter_px=192, longer_px=320),
            pyramid_proposals=replace(
                DETECTRON2.pyramid_proposals, num_candidates=60, num_proposals=100
            ),
            choice=replace(DETECTRON2.choice, max_objects=50),
        )
    if name == "c4":
        return replace(
            DETECTRON2,
            picture=replace(DETECTRON2.picture, shorter_px=180, longer_px=310),
            proposals=replace(DETECTRON2.proposals, num_candidates=600, num_proposals=64),
            choice=replace(DETECTRON2.choice, max_objects=50),
        )
    return replace(
        DETECTRON2,
        picture=replace(DETECTRON2.picture, shorter_px=160, longer_px=290),
        proposals=replace(DETECTRON2.proposals, num_proposals=50),
        boxes=replace(DETECTRON2.boxes, sampling_ratio=2),
    )


def net_of(weights: dict[str, np.ndarray], family: Family) -> FasterRCNN:
    """The net that our reader makes of a checkpoint."""
    config, state = read_net(weights, family)
    return net_with(config, state)


def net_with(config: TeacherConfig, state: dict[str, torch.Tensor]) -> FasterRCNN:
    num_labels, num_attributes = num_names(config, state)
    model = FasterRCNN(config, num_labels=num_labels, num_attributes=num_attributes)
    model.load_state_dict(state)
    return model.eval()
