"""Runs a teacher: decoded pictures in, one array of objects a picture out.

What is found in a picture does not hang on its neighbours. Nothing is padded, which moves features
even far from the border, unless `bucket_px` asks for it.

In "fp32" each picture runs through the net alone: the kernels that convolve and multiply take other
ways for other sizes, so that a picture among others, even of its own size, comes out with other
last digits, and now and then with another box. That costs speed where a device is too wide for one
picture; "bf16" is there for it. In "bf16" pictures of one size run together, with convolutions and
linear layers in bfloat16 and all that decides (logits, softmax, boxes, suppression) in single
precision; "tf32" is the same with all products in TF32, on NVIDIA's GPUs. Of the same boxes,
features in "bf16" stay within 3 % of the largest and probabilities within 0.1, against single
precision and between sizes of batches alike
(tests/stages/distill/inference/test_batch_invariance.py, which also prints what "fp32" differs by:
nothing).

The net's weights and pictures are in channels-last memory format, in which convolutions are faster
on CPUs and on NVIDIA's tensor cores. It is not compiled by torch.compile, which gains a few percent
on a CPU and takes seconds for each size of picture (benchmarks/detector/convolution_variants.py);
on a GPU it was not tried.

What a row says: `box`, `label` and `score` are those of the class that won its place; `feature`,
`top_label`, `top_score`, `attribute` are of the proposal that the object came from, as detectron2
reports them, so two rows may share them, and `top_label[0]` may be another class than `label`
when one proposal gave two objects. `top_score` is a part of the softmax over all classes,
background included, and not renormalised.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from boxless.errors import BoxlessError
from sharding.format.schema import object_dtype
from stages.detector.model.faster_rcnn import Detections, FasterRCNN
from stages.detector.model.test_time_augmentation import View, find_in_views
from stages.detector.ops.boxes import clip_to, far_corners, is_nonempty
from stages.detector.ops.pooler import picture_of_boxes
from stages.detector.ops.resize import Prepared, enlarged, padded_size, prepare, resized_size, stack
from stages.tf32 import TF32, allow_tf32

LARGEST_HALF = float(np.finfo(np.float16).max)


class Teacher:
    """A trained net with the names of what it knows.

    label_names, attribute_names: by number. feature_size: D of the arrays. fingerprint: names
    weights and settings. precision: "fp32", "tf32" or "bf16". bucket_px: other than in "fp32" the
    sides of a picture are padded with zeros, at the right and bottom, to multiples of it, alone as
    in a batch; 1: not at all. Batch normalisation is frozen.
    """

    def __init__(
        self,
        model: FasterRCNN,
        *,
        label_names: list[str],
        attribute_names: list[str],
        fingerprint: str,
        precision: str = "fp32",
        bucket_px: int = 1,
    ) -> None:
        self.model = model.eval()
        self.label_names, self.attribute_names = label_names, attribute_names
        self.fingerprint, self.precision = fingerprint, precision
        has_views = model.config.picture.num_views > 1
        self._is_alone = precision == "fp32" or has_views
        self._bucket_px = 1 if self._is_alone else bucket_px
        self.feature_size = model.config.boxes.feature_size
        self.num_top = min(model.config.choice.num_top, len(label_names))
        self._device = next(model.parameters()).device

    def with_settings(
        self,
        *,
        precision: str,
        score_threshold: float | None = None,
        min_objects: int | None = None,
        max_objects: int | None = None,
        bucket_px: int = 1,
    ) -> Teacher:
        """The same teacher in `precision` with `bucket_px`, and where it chooses among its
        proposals, by these bounds; None is its own. Its weights are shared. ValueError where the
        bounds contradict each other."""
        model, choice = self.model, self.model.config.choice
        if choice.rule == "proposals":
            if score_threshold is not None:
                choice = dataclasses.replace(choice, score_threshold=score_threshold)
            choice = dataclasses.replace(
                choice,
                min_objects=choice.min_objects if min_objects is None else min_objects,
                max_objects=choice.max_objects if max_objects is None else max_objects,
            )
            model = copy.copy(model)
            model.config = dataclasses.replace(model.config, choice=choice)
        return Teacher(
            model,
            label_names=self.label_names,
            attribute_names=self.attribute_names,
            fingerprint=self.fingerprint,
            precision=precision,
            bucket_px=bucket_px,
        )

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the tensor of a picture of that size, in pixels."""
        size = resized_size((height, width), self.model.config.picture)
        return padded_size(size, self._bucket_px)

    def prepare(self, picture: Tensor) -> Prepared:
        """A picture uint8 RGB [H, W, 3], resized. ValueError for a tensor that is no picture."""
        _check_picture(picture)
        config = self.model.config.picture
        first, *others = (
            self._at_hand(prepare(picture, enlarged(config, scale)))
            for scale in config.inference_scales
        )
        return first._replace(other_sizes=tuple(others))

    def _at_hand(self, prepared: Prepared) -> Prepared:
        """The same in pinned memory, from which it goes over to a GPU while that works."""
        if self._device.type != "cuda":
            return prepared
        with torch.cuda.device(self._device):  # each thread has its own idea of the current one
            return prepared._replace(pixels=prepared.pixels.pin_memory())

    def detect(self, prepared: list[Prepared]) -> list[np.ndarray]:
        """Objects of prepared pictures of one canvas, boxes in pixels of the original ones.

        An array of `sharding.format.schema.object_dtype` each, rows by falling score, perhaps none.
        """
        has_views = self.model.config.picture.num_views > 1
        batches = [[picture] for picture in prepared] if self._is_alone else [prepared]
        arrays = []
        for batch in batches:
            with in_precision(self.precision, self._device):
                found = [self._find_in_views(*batch)] if has_views else self._find(batch)
            arrays += self._arrays(found, batch)
        return arrays

    def _find(self, batch: list[Prepared]) -> list[Detections]:
        """Objects of pictures of one canvas, in pixels of the resized ones."""
        pixels = [picture.pixels for picture in batch]
        canvas = self.canvas(batch[0].height, batch[0].width)
        return self.model.find(
            stack(pixels, self.model.config.picture, self._device, canvas=canvas),
            [picture.size for picture in batch],
            [picture.scale for picture in batch],
        )

    def _find_in_views(self, picture: Prepared) -> Detections:
        """Objects of one picture in all its views, in pixels of the first."""
        config, views = self.model.config.picture, []
        for sized in (picture, *picture.other_sizes):
            pixels = stack([sized.pixels], config, self._device)
            scale = (sized.scale[0] / picture.scale[0], sized.scale[1] / picture.scale[1])
            views.append(View(pixels, scale))
            if config.inference_mirror:
                views.append(View(pixels.flip(3), scale, is_mirrored=True))
        return find_in_views(self.model, views)

    def _arrays(self, found: list[Detections], pictures: list[Prepared]) -> list[np.ndarray]:
        """What was found in resized pictures, as rows in pixels of the original ones."""
        boxes, scores, labels, features, probabilities = (
            torch.cat(parts) for parts in list(zip(*found))[:5]
        )
        picture = picture_of_boxes([one.boxes for one in found])
        scales = [[1 / factor for factor in one.scale] * 2 for one in pictures]
        corners = far_corners(boxes, [(one.height, one.width) for one in pictures])
        boxes = clip_to(boxes * boxes.new_tensor(scales)[picture], corners[picture])
        rows = torch.nonzero(is_nonempty(boxes)).flatten()
        top_scores, top_labels = largest(probabilities[rows], self.num_top)
        fields = {
            "box": boxes[rows],
            "score": scores[rows],
            "label": labels[rows],
            "feature": features[rows].clamp(max=LARGEST_HALF),
            "top_label": top_labels,
            "top_score": top_scores,
        }
        attributes = [one.attributes for one in found if one.attributes is not None]
        if attributes:
            best = torch.cat(attributes)[rows].max(1)
            fields |= {"attribute": best.indices, "attribute_score": best.values}
        dtype = object_dtype(
            feature_size=self.feature_size,
            num_top=self.num_top,
            attributes=bool(self.attribute_names),
        )
        return structured(fields, picture[rows], len(found), dtype)


def structured(
    fields: dict[str, Tensor], picture: Tensor, num_pictures: int, dtype: np.dtype
) -> list[np.ndarray]:
    """Fields [O, ...] of the objects of all pictures as an array of `dtype` a picture; picture
    [O] (int64), rising: which one an object is of. By one copy from the device: in single
    precision, which is exact for numbers of labels."""
    columns = {
        name: values.flatten(1) if values.ndim > 1 else values[:, None]
        for name, values in fields.items()
    }
    table = torch.cat([*columns.values(), picture[:, None]], 1).float().cpu().numpy()
    array = np.zeros(len(table), dtype)
    first = 0
    for name, column in columns.items():
        end = first + column.shape[1]
        array[name] = table[:, first:end].reshape(array[name].shape)
        first = end
    ends = np.searchsorted(table[:, -1], np.arange(1, num_pictures))
    return [own.copy() for own in np.split(array, ends)]


def largest(values: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The `num` largest of each row of [N, M] and their columns, [N, num]: what a stable sort
    gives, equal ones by rising column. Sorting all of 1600 classes takes ten times as long."""
    top = values.topk(num, dim=1)
    columns = top.indices.sort(dim=1).values
    order = values.gather(1, columns).sort(dim=1, descending=True, stable=True)
    best, columns = order.values, columns.gather(1, order.indices)
    # topk takes any of those that are equal to the last one.
    is_tied = (values >= best[:, -1:]).sum(1) > num
    if is_tied.any():
        whole = values[is_tied].sort(dim=1, descending=True, stable=True)
        columns[is_tied] = whole.indices[:, :num]
    return best, columns


@contextlib.contextmanager
def in_precision(precision: str, device: torch.device) -> Iterator[None]:
    """ "fp32" is single precision in earnest, without NVIDIA's TF32; "tf32" is with it; both by
    kernels that give the same each time. "bf16" leaves convolutions and linear layers to
    autocast, and the others to single precision."""
    is_tf32 = precision == TF32
    with contextlib.ExitStack() as inside:
        if precision == "bf16":
            inside.enter_context(torch.autocast(device.type, torch.bfloat16))
        else:
            inside.enter_context(
                torch.backends.cudnn.flags(
                    enabled=True, benchmark=False, deterministic=True, allow_tf32=is_tf32
                )
            )
        inside.enter_context(allow_tf32(is_tf32))
        yield


def _check_picture(picture: Tensor) -> None:
    """ValueError unless `picture` is uint8 [H, W, 3] with pixels in it."""
    if (
        picture.dtype != torch.uint8
        or picture.ndim != 3
        or picture.shape[2] != 3
        or (picture.numel() == 0)
    ):
        raise BoxlessError(
            f"picture: got {picture.dtype} {tuple(picture.shape)}, expected torch.uint8 "
            "[height, width, 3], red green blue, not empty; decode it to RGB"
        )
