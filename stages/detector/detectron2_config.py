"""The recipe's `distill.detectron2` part: detectron2's configuration and weights.

Used with `distill.teacher: detectron2`, where detectron2 itself is installed.
"""

from __future__ import annotations

from dataclasses import dataclass

from boxless.errors import BoxlessError


@dataclass(frozen=True, kw_only=True)
class Detectron2Config:
    """A detector of detectron2 (https://github.com/facebookresearch/detectron2).

    config_file: a name of its model zoo, as COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml, or the
        path of a file: YAML, or a lazy config, which is a Python program that is run.
    weights: path of the weights, a .pkl, .pth or .safetensors file; nothing is downloaded.
    labels: path of a text file with the name of a class a line, in the order of its numbers;
        null takes the `thing_classes` that detectron2 knows of the config's test data set.
    num_top: classes in an object's soft label.
    """

    config_file: str
    weights: str
    labels: str | None = None
    num_top: int = 5

    def __post_init__(self) -> None:
        for name, expected in (
            ("config_file", "a name of detectron2's model zoo or the path of a config"),
            ("weights", "the path of a .pkl, .pth or .safetensors file"),
        ):
            if not getattr(self, name):
                raise BoxlessError(f"{name}: got nothing, expected {expected}.")
        if self.labels == "":
            raise BoxlessError("labels: got nothing, expected the path of a text file, or null.")
        if self.num_top < 1:
            raise BoxlessError(f"num_top: got {self.num_top}, expected 1 or more.")
