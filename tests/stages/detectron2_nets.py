"""Small nets of detectron2 for the tests that run beside it: configs, weights, a photograph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.cbook
import numpy as np
import torch
from PIL import Image

from benchmarks.detector.detector_weights import make_weights
from stages.detector.detectron2_net import zoo_folder

LABELS = ["plate", "cup", "spoon", "lemon", "crumb"]
SMALL = f"""
MODEL:
  RESNETS: {{STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 32, WIDTH_PER_GROUP: 8}}
  FPN: {{OUT_CHANNELS: 32}}
  ROI_BOX_HEAD: {{FC_DIM: 128}}
  ROI_HEADS: {{NUM_CLASSES: {len(LABELS)}}}
  RPN: {{POST_NMS_TOPK_TEST: 60}}
INPUT: {{MIN_SIZE_TEST: 160, MAX_SIZE_TEST: 280}}
"""


def photograph() -> np.ndarray:
    """A photograph that comes with matplotlib, uint8 RGB [600, 512, 3]."""
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file, Image.open(file) as image:
        return np.array(image.convert("RGB"))


def write_config(folder: Path, base: str, more: str = "") -> Path:
    """A YAML config: `base` of the model zoo, narrow, with `more` YAML laid over it."""
    import yaml

    values = yaml.safe_load(SMALL)
    _lay_over(values, yaml.safe_load(more) or {})
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"_BASE_": str(zoo_folder() / base), **values}))
    return path


def small_weights(*, has_pyramid: bool) -> dict[str, np.ndarray]:
    """Weights of the narrow net."""
    return make_weights(
        torch.from_numpy(photograph()),
        depth=50,
        has_pyramid=has_pyramid,
        num_labels=len(LABELS),
        width=8,
    )


def write_weights(path: Path, weights: Mapping[str, np.ndarray]) -> Path:
    """A .pth file as detectron2's checkpointer writes one."""
    tensors = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
    torch.save({"model": tensors, "iteration": 9}, path)
    return path


def _lay_over(values: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict) and name in values:
            _lay_over(values[name], value)
        else:
            values[name] = value
