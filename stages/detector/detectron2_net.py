"""Builds detectron2's own net from its configuration and a file of weights.

detectron2 is looked for at run time. Of its ways of loading two are not taken: its checkpointer
unpickles whatever a .pkl holds, so weights come through `convert.read_checkpoint`, which builds
arrays and nothing else; and a YAML config may name Python objects to build, so it is read without
that. A lazy config (.py) is a program by design, which runs only where the user said so on the
command line, never by a recipe alone.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from boxless.errors import BoxlessError
from stages.detector.checkpoints.convert import read_checkpoint
from stages.detector.detectron2_config import Detectron2Config

# Buffers that older checkpoints hold and newer nets make from their config.
FROM_CONFIG = re.compile(r"pixel_mean$|pixel_std$|anchor_generator\.cell_anchors")
# How often a normalisation was trained; of no use, and not in every checkpoint.
COUNTER = re.compile(r"num_batches_tracked$")
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
ALLOW_CODE = "BOXLESS_ALLOW_CODE"  # 1 where the user said that configs may be programs
NUM_NAMED = 5  # keys that a message lists


class Detectron2Error(BoxlessError):
    """detectron2, or what the recipe gives it, cannot be used as a teacher."""


class Detectron2Net(NamedTuple):
    """A net of detectron2 and the format of its input pictures."""

    model: Any  # GeneralizedRCNN in eval mode, with weights
    resizing: Any  # an augmentation: ResizeShortestEdge
    channels: str  # "BGR" or "RGB"
    config: str  # every setting of net and pictures, for the fingerprint
    dataset: str | None  # the config's test data set


def load_net(config: Detectron2Config, device: torch.device) -> Detectron2Net:
    """The net of `config`, with its weights, on `device`.

    Raises Detectron2Error where detectron2 is not here, where the config cannot be read or its
    net has no box head, and where the weights do not fit it; CheckpointError for
    a file that holds no weights.
    """
    # By the same rule as what is run below: Path("evil.py/") is a file evil.py, too.
    if Path(config.config_file).suffix == ".py" and os.environ.get(ALLOW_CODE) != "1":
        raise Detectron2Error(
            f"config_file: got {config.config_file}, a Python program, which would run with your "
            "rights; expected YAML, or the option --allow-code on the command line where you "
            "trust it."
        )
    find_detectron2()
    path = _find_config(config.config_file)
    try:
        net = _from_python(path) if path.suffix == ".py" else _from_yaml(path)
    except Exception as error:  # whatever a config or its program raises
        raise Detectron2Error(
            f"config_file: got {type(error).__name__}: {error} from {path}, expected a config "
            "that this detectron2 builds a detector from. One of a project beside detectron2, or "
            "of another version of it, does not fit."
        ) from error
    _check_kind(net.model, config.config_file)
    _load_weights(net.model, Path(config.weights), config.config_file)
    net.model.eval().to(device)
    return net


def find_detectron2() -> str:
    """detectron2's version. Raises Detectron2Error where it cannot be imported."""
    try:
        # Its data sets' names come with the second import.
        version = str(importlib.import_module("detectron2").__version__)
        importlib.import_module("detectron2.data")
        importlib.import_module("detectron2.modeling")
    # A build for another torch fails with an OSError or a RuntimeError.
    except (ImportError, OSError, RuntimeError) as error:
        raise Detectron2Error(
            "teacher: got 'detectron2', expected that package in this environment, built for "
            f"torch {torch.__version__}, but importing it gave {type(error).__name__}: {error}. "
            "Install it, or turn a C4 or FPN checkpoint of detectron2 into a teacher that needs "
            "no detectron2: boxless convert, and distill.teacher: run."
        ) from error
    return version


def zoo_folder() -> Path:
    """Where detectron2's own configs lie."""
    package = importlib.import_module("detectron2").__file__
    return Path(str(package)).parent / "model_zoo" / "configs"


def _find_config(name: str) -> Path:
    """The file that a recipe's `config_file` means: a path, or a name of the model zoo."""
    zoo = zoo_folder()
    for path in (Path(name), zoo / name):
        if path.is_file():
            return path
    raise Detectron2Error(
        f"config_file: got {name!r}, expected the path of a config or a name of the model zoo, "
        f"as COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml; there is no such file, nor one in {zoo}."
    )


def _from_yaml(path: Path) -> Detectron2Net:
    """The net, still with random weights, of a YAML config."""
    transforms = importlib.import_module("detectron2.data.transforms")
    cfg = importlib.import_module("detectron2.config").get_cfg()
    cfg.merge_from_file(str(path), allow_unsafe=False)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    return Detectron2Net(
        model=importlib.import_module("detectron2.modeling").build_model(cfg),
        resizing=transforms.ResizeShortestEdge(
            [cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST
        ),
        channels=cfg.INPUT.FORMAT,
        config=cfg.dump(),
        dataset=next(iter(cfg.DATASETS.TEST), None),
    )


def _from_python(path: Path) -> Detectron2Net:
    """The same of a lazy config, which says how pictures are prepared in `dataloader.test`."""
    transforms = importlib.import_module("detectron2.data.transforms")
    config = importlib.import_module("detectron2.config")
    cfg = config.LazyConfig.load(str(path))
    test = cfg.dataloader.test
    resizing = [config.instantiate(part) for part in test.mapper.augmentations]
    if len(resizing) != 1 or not isinstance(resizing[0], transforms.ResizeShortestEdge):
        raise BoxlessError(
            f"dataloader.test.mapper.augmentations: got {resizing}, expected one "
            "ResizeShortestEdge, as boxes are turned back to pixels of the picture"
        )
    settings = f"{cfg.model}\n{test.mapper.augmentations}\n{test.mapper.image_format}"
    return Detectron2Net(
        model=config.instantiate(cfg.model),
        resizing=resizing[0],
        channels=test.mapper.image_format,
        config=ADDRESS.sub("", settings),
        dataset=test.dataset.names if isinstance(test.dataset.names, str) else None,
    )


def _check_kind(model: Any, config_file: str) -> None:
    """Detectron2Error unless `model` proposes upright boxes and has a box head for them."""
    modeling = importlib.import_module("detectron2.modeling")
    heads = importlib.import_module("detectron2.modeling.roi_heads")
    rotated = importlib.import_module("detectron2.modeling.roi_heads.rotated_fast_rcnn")
    reason = ""
    if not isinstance(model, modeling.GeneralizedRCNN):
        reason = f"a {type(model).__name__}, which has no box head to take features from"
    elif model.proposal_generator is None:
        reason = "a net that takes its proposals from a file"
    elif isinstance(model.roi_heads, rotated.RROIHeads):
        reason = "a net of rotated boxes, which object shards cannot hold"
    elif not isinstance(model.roi_heads, (heads.StandardROIHeads, heads.Res5ROIHeads)):
        reason = f"the heads {type(model.roi_heads).__name__}"
    if reason:
        raise Detectron2Error(
            f"config_file: got {config_file}, {reason}; expected a Faster, Mask, Keypoint or "
            "Cascade R-CNN: GeneralizedRCNN with StandardROIHeads or Res5ROIHeads."
        )


def _load_weights(model: Any, path: Path, config_file: str) -> None:
    """Puts the weights of `path` into `model`.

    Raises Detectron2Error unless each has its place, CheckpointError for a file that is none.
    """
    weights = read_checkpoint(path)
    expected = model.state_dict()
    faults = {
        "missing": [key for key in expected if key not in weights and not COUNTER.search(key)],
        "left over": [
            key for key in weights if key not in expected and not FROM_CONFIG.search(key)
        ],
        "of another shape": [
            f"{key} {weights[key].shape} for {tuple(tensor.shape)}"
            for key, tensor in expected.items()
            if key in weights and weights[key].shape != tuple(tensor.shape)
        ],
        "with NaN or infinity": _odd(weights),
    }
    if any(faults.values()):
        found = "; ".join(
            f"{len(keys)} {fault}: {', '.join(keys[:NUM_NAMED])}"
            + (", ..." if len(keys) > NUM_NAMED else "")
            for fault, keys in faults.items()
            if keys
        )
        raise Detectron2Error(
            f"weights: got {path}, which does not fit {config_file} ({found}); expected a "
            "finished detector trained with that config, not a backbone alone."
        )
    # Not strict for the sake of the counters: all else was checked above.
    model.load_state_dict(
        {key: torch.tensor(weights[key]) for key in expected if key in weights}, strict=False
    )


def _odd(weights: Mapping[str, np.ndarray]) -> list[str]:
    """Keys of the arrays that hold a number which is none."""
    return [
        key
        for key, array in weights.items()
        if array.dtype.kind == "f" and not np.isfinite(array).all()
    ]
