"""A teacher at work: decoded pictures in, one array of objects a picture out.

Reached from `stages/distill/run.py` (through `folder.load_teacher`) and `evaluate.py`.

Pictures are grouped by their exact resized size, so nothing is padded and what is found in a
picture does not hang on its neighbours (padding moves features even far from the border: a
picture alone and a picture on a larger canvas give other proposals).

What a row says: `box`, `label` and `score` are those of the class that won its place; `feature`,
`top_label`, `top_score`, `attribute` are of the proposal that the object came from, as detectron2
reports them, so two rows may share them, and `top_label[0]` may be another class than `label`
when one proposal gave two objects. `top_score` is a part of the softmax over all classes,
background included, and not renormalised.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sharding.schema import object_dtype
from stages.distill.teacher.boxes import clip, is_nonempty
from stages.distill.teacher.faster_rcnn import FasterRCNN, Found
from stages.distill.teacher.resize import resize, resized_size, stack

LARGEST_HALF = float(np.finfo(np.float16).max)


class Teacher:
    """A trained net with the names of what it knows.

    label_names, attribute_names: by number. feature_size: D of the arrays. fingerprint: names
    weights and settings. Batch normalisation is frozen.
    """

    def __init__(self, model: FasterRCNN, *, label_names: list[str], attribute_names: list[str],
                 fingerprint: str) -> None:
        self.model = model.eval()
        self.label_names, self.attribute_names = label_names, attribute_names
        self.fingerprint = fingerprint
        self.feature_size = model.config.boxes.feature_size
        self.num_top = min(model.config.choice.num_top, len(label_names))

    def detect(self, pictures: list[Tensor]) -> list[np.ndarray]:
        """Objects of uint8 RGB pictures [H, W, 3], boxes in pixels of the given picture.

        An array of `sharding.schema.object_dtype` each, rows by falling score, perhaps none.
        Raises ValueError for a tensor that is no such picture.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for index, picture in enumerate(pictures):
            _check_picture(picture)
            size = resized_size((picture.shape[0], picture.shape[1]), self.model.config.picture)
            groups.setdefault(size, []).append(index)
        arrays: dict[int, np.ndarray] = {}
        device = next(self.model.parameters()).device
        for size, indices in groups.items():
            resized = [resize(pictures[index], size) for index in indices]
            batch = stack(resized, self.model.config.picture, device)
            found = self.model.find(batch, [size] * len(indices))
            for index, some in zip(indices, found):
                arrays[index] = self._array(some, size, pictures[index])
        return [arrays[index] for index in range(len(pictures))]

    def _array(self, found: Found, size: tuple[int, int], picture: Tensor) -> np.ndarray:
        """What was found in the resized picture of `size`, as rows in pixels of `picture`."""
        height, width = picture.shape[:2]
        scale = found.boxes.new_tensor([width / size[1], height / size[0]] * 2)
        boxes = clip(found.boxes * scale, (height, width))
        keep = is_nonempty(boxes)
        array = np.zeros(int(keep.sum()), object_dtype(
            feature_size=self.feature_size, num_top=self.num_top,
            attributes=bool(self.attribute_names)))
        top = torch.sort(found.probabilities[keep], dim=1, descending=True, stable=True)
        array["box"] = boxes[keep].cpu().numpy()
        array["score"] = found.scores[keep].cpu().numpy()
        array["label"] = found.labels[keep].cpu().numpy()
        array["feature"] = found.features[keep].clamp(max=LARGEST_HALF).cpu().numpy()
        array["top_label"] = top.indices[:, :self.num_top].cpu().numpy()
        array["top_score"] = top.values[:, :self.num_top].cpu().numpy()
        if found.attributes is not None:
            best = found.attributes[keep].max(1)
            array["attribute"] = best.indices.cpu().numpy()
            array["attribute_score"] = best.values.cpu().numpy()
        return array


def _check_picture(picture: Tensor) -> None:
    """ValueError unless `picture` is uint8 [H, W, 3] with pixels in it."""
    if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or (
            picture.numel() == 0):
        raise ValueError(
            f"picture: got {picture.dtype} {tuple(picture.shape)}, expected torch.uint8 "
            "[height, width, 3], red green blue, not empty; decode it to RGB")
