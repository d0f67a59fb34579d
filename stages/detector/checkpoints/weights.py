"""Converts a checkpoint's arrays to a net's configuration and weights.

Names are detectron2's (GeneralizedRCNN with ResNet, FPN, Res5ROIHeads or StandardROIHeads), and
those of the two ports of bottom-up attention: MILVLG's and airsplay's. Widths, depths and counts
are read off the shapes, all else is of the family.

Checkpoints are converted to one convention, that of the net: frozen normalisation is folded into
the convolution before it (in double precision), BGR stems become RGB, the background class and the
class "no attribute" are the last, and a proposal network with two logits an anchor, of a softmax,
gets their difference.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from stages.detector.checkpoints.checkpoint_error import CheckpointError
from stages.detector.checkpoints.families import Family
from stages.detector.model.anchors import cell_anchors
from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.model.meta_init import shapes_only
from stages.detector.net_config import ProposalConfig, ResNetConfig, TeacherConfig

FROZEN_EPS = 1e-5  # of detectron2's FrozenBatchNorm2d and torch's BatchNorm2d
ANCHOR_TOLERANCE_PX = 0.01
PIXEL_TOLERANCE = 0.01
NUM_NAMED = 8  # keys that a message names; of the others it gives the count

RPN = "proposal_generator.rpn_head"
ANCHORS = "proposal_generator.anchor_generator.cell_anchors"
HEADS = "roi_heads"
PREDICTOR = f"{HEADS}.box_predictor"
STAGES = ("res2", "res3", "res4", "res5")
# The attribute predictor's embedding, hidden layer and logits: MILVLG's in d2 and caffe mode,
# airsplay's.
ATTRIBUTE_LAYERS = (
    (
        f"{HEADS}.attribute_predictor.obj_embed",
        f"{HEADS}.attribute_predictor.fc.0",
        f"{HEADS}.attribute_predictor.attr_score",
    ),
    (f"{PREDICTOR}.cls_embed", f"{PREDICTOR}.attr_linear1", f"{PREDICTOR}.attr_linear2"),
    (f"{PREDICTOR}.cls_embedding", f"{PREDICTOR}.fc_attr", f"{PREDICTOR}.attr_score"),
)
# Other heads of the same detector, which share nothing but the backbone's features.
OTHER_HEADS = (f"{HEADS}.mask_head.", f"{HEADS}.keypoint_head.")
PRE_ACTIVATION = "backbone.stem.norm.weight"


def read_net(
    weights: Mapping[str, np.ndarray], family: Family
) -> tuple[TeacherConfig, dict[str, Tensor]]:
    """The config and the state (of `FasterRCNN`, float32) that a checkpoint's `weights` hold.

    Raises CheckpointError naming keys that are missing, of the wrong shape or of no known part,
    numbers that are not finite, and what contradicts `family`.
    """
    arrays = _Arrays(weights, family)
    attributes = next(
        (names for names in ATTRIBUTE_LAYERS if f"{names[0]}.weight" in weights), None
    )
    config = _read_config(arrays, family, attributes)
    num_labels = arrays.shape(f"{PREDICTOR}.cls_score.weight", 2)[0] - 1
    num_attributes = 0
    if attributes is not None:
        num_attributes = arrays.shape(f"{attributes[2]}.weight", 2)[0] - (
            family.no_attribute is not None
        )
    with shapes_only():
        model = FasterRCNN(config, num_labels=num_labels, num_attributes=num_attributes)
    state = {
        name: _read(arrays, name, tuple(tensor.shape), family, attributes)
        for name, tensor in model.state_dict().items()
    }
    arrays.check()
    return config, {
        name: torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
        for name, array in state.items()
    }


def num_names(config: TeacherConfig, state: Mapping[str, Tensor]) -> tuple[int, int]:
    """How many labels and attributes a net of `config` with `state` has."""
    num_labels = len(state["box_predictor.cls_score.bias"]) - 1
    attributes = state.get("attribute_predictor.attr_score.bias")
    if attributes is None:
        return num_labels, 0
    return num_labels, len(attributes) - config.boxes.has_no_attribute


class _Arrays:
    """A checkpoint's arrays, each to be taken once; keeps count of all that is wrong."""

    def __init__(self, weights: Mapping[str, np.ndarray], family: Family) -> None:
        self._weights, self._family = weights, family
        self._left = {
            name
            for name in weights
            if not name.startswith(OTHER_HEADS) and not name.endswith(".num_batches_tracked")
        }
        # Names in the order in which they were met, once each: a dict without values.
        self._missing: dict[str, None] = {}
        self._misshapen: dict[str, None] = {}
        self._odd: dict[str, None] = {}
        if PRE_ACTIVATION in weights:
            raise self.error(
                f"{PRE_ACTIVATION}",
                "a ResNet that normalises after adding; "
                "pre-activation ones, as bottom-up attention's R152, are not read",
            )

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def error(self, got: str, expected: str) -> CheckpointError:
        """A CheckpointError that says so, and which family was meant."""
        return CheckpointError(
            f"got {got}, expected {expected}; it was read as of the family "
            f"{self._family.name!r} ({self._family.about}): name another family, change the one "
            "setting of it that differs, or take another checkpoint"
        )

    def shape(self, name: str, num_axes: int) -> tuple[int, ...]:
        """The shape of an array that the rest hangs on."""
        shape = np.shape(self._weights[name]) if name in self._weights else None
        if shape is None or len(shape) != num_axes or 0 in shape:
            raise self.error(
                f"no {name}" if shape is None else f"{name} of shape {shape}",
                f"the {num_axes} axes of a Faster R-CNN's {name}",
            )
        return shape

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """An array in double precision; zeros, and a note, where there is none that fits."""
        self._left.discard(name)
        array = self._weights.get(name)
        if array is None:
            self._missing[name] = None
        elif array.shape != shape or array.dtype.kind != "f":
            fault = f"{name} ({array.dtype} {list(array.shape)}, expected floats {list(shape)})"
            self._misshapen[fault] = None
        else:
            wide = array.astype(np.float64)
            if not np.isfinite(wide).all():
                self._odd[name] = None
            return wide
        return np.zeros(shape)

    def numbers(self, name: str) -> np.ndarray:
        """The numbers [n] of an array that is there, of any shape, in double precision."""
        return self.take(name, self._weights[name].shape).ravel()

    def note_odd(self, name: str) -> None:
        """Notes numbers that are not finite."""
        self._odd[name] = None

    def check(self) -> None:
        """CheckpointError where anything is wrong or left over."""
        faults = [
            f"{len(names)} {what}: {_some(list(names))}"
            for names, what in (
                (self._missing, "keys missing"),
                (self._misshapen, "arrays of another shape or kind"),
                (self._odd, "arrays with numbers that are not finite"),
                (dict.fromkeys(sorted(self._left)), "keys of no known part"),
            )
            if names
        ]
        if faults:
            raise self.error(
                "; ".join(faults), "the weights of one Faster R-CNN, complete and finite"
            )


def _read(
    arrays: _Arrays,
    name: str,
    shape: tuple[int, ...],
    family: Family,
    attributes: Sequence[str] | None,
) -> np.ndarray:
    """The array of our parameter `name`, of `shape`, in double precision."""
    layer, _, part = name.rpartition(".")
    source, is_normalised = _source(layer, attributes)
    if is_normalised:
        return _folded(arrays, source, part, shape)
    extra = _extra_rows(arrays, layer, source, shape[0], family)
    array = arrays.take(f"{source}.{part}", (shape[0] + extra, *shape[1:]))
    if layer == "proposal_network.objectness_logits" and extra:
        return array[extra:] - array[:extra]
    if layer == "box_predictor.bbox_pred":
        return array[extra:]
    if layer in ("box_predictor.cls_score", "attribute_predictor.obj_embed"):
        return np.roll(array, -1, 0) if family.background == "first" else array
    if layer == "attribute_predictor.attr_score":
        return (np.roll(array, -1, 0) if family.no_attribute == "first" else array)[: shape[0]]
    return array


def _source(layer: str, attributes: Sequence[str] | None) -> tuple[str, bool]:
    """The checkpoint's name of our `layer`, and whether it is one with frozen normalisation."""
    part, _, rest = layer.partition(".")
    if part == "backbone":
        return layer, not rest.startswith("fpn_")
    if part == "box_head":
        is_res5 = rest.startswith("res5.")
        return (f"{HEADS}.{rest}" if is_res5 else f"{HEADS}.{layer}"), is_res5
    if part == "proposal_network":
        return f"{RPN}.{rest}", False
    if part == "attribute_predictor":
        assert attributes is not None
        return attributes[("obj_embed", "fc", "attr_score").index(rest)], False
    return f"{HEADS}.{layer}", False


def _extra_rows(arrays: _Arrays, layer: str, source: str, num_rows: int, family: Family) -> int:
    """Rows that the checkpoint's array has more than the `num_rows` of ours."""
    if layer == "proposal_network.objectness_logits":
        is_softmax = arrays.shape(f"{source}.weight", 4)[0] == 2 * num_rows
        return num_rows if is_softmax else 0
    if layer == "box_predictor.bbox_pred":
        return 4 if family.background == "first" else 0
    if layer == "attribute_predictor.attr_score":
        return int(family.no_attribute is not None and not family.boxes.has_no_attribute)
    return 0


def _folded(arrays: _Arrays, source: str, part: str, shape: tuple[int, ...]) -> np.ndarray:
    """Weight or bias of a convolution into which its frozen normalisation is folded."""
    num_rows = shape[0]
    scale, shift, mean, variance = (
        arrays.take(f"{source}.norm.{name}", (num_rows,))
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    if (variance <= -FROZEN_EPS).any():
        arrays.note_odd(f"{source}.norm.running_var")
        variance = np.zeros(num_rows)
    factor = scale / np.sqrt(variance + FROZEN_EPS)
    if part == "bias":
        return shift - mean * factor
    weight = arrays.take(f"{source}.weight", shape) * factor.reshape(-1, 1, 1, 1)
    return weight[:, ::-1] if source.endswith("stem.conv1") else weight


def _read_config(
    arrays: _Arrays, family: Family, attributes: Sequence[str] | None
) -> TeacherConfig:
    """The net's config: sizes from the checkpoint, the rest from the family."""
    backbone = _read_backbone(arrays, family)
    is_pyramid = backbone.fpn_width is not None
    proposals = family.pyramid_proposals if is_pyramid else family.proposals
    boxes = family.pyramid_boxes if is_pyramid else family.boxes
    if proposals is None or boxes is None:
        raise arrays.error("a feature pyramid (backbone.fpn_lateral2)", "a C4 model")
    _check_pixels(arrays, family)
    feature_size = (
        arrays.shape(f"{HEADS}.box_head.fc2.weight", 2)[0]
        if is_pyramid
        else backbone.stage_widths[-1]
    )
    boxes = dataclasses.replace(
        boxes,
        feature_size=feature_size,
        has_no_attribute=boxes.has_no_attribute and attributes is not None,
    )
    if attributes is not None:
        boxes = dataclasses.replace(
            boxes,
            attribute_embedding_size=arrays.shape(f"{attributes[0]}.weight", 2)[1],
            attribute_hidden_size=arrays.shape(f"{attributes[1]}.weight", 2)[0],
        )
    return TeacherConfig(
        picture=family.picture,
        backbone=backbone,
        proposals=_read_proposals(arrays, proposals, family, len(backbone.strides_px)),
        boxes=boxes,
        choice=family.choice,
        inclusive_boxes=family.inclusive_boxes,
    )


def _read_backbone(arrays: _Arrays, family: Family) -> ResNetConfig:
    is_pyramid = "backbone.bottom_up.stem.conv1.weight" in arrays
    trunk = "backbone.bottom_up" if is_pyramid else "backbone"
    stages = [f"{trunk}.{name}" for name in STAGES[:3]]
    stages.append(f"{trunk}.res5" if is_pyramid else f"{HEADS}.res5")
    num_blocks = [
        next(
            number
            for number in itertools.count(1)
            if f"{stage}.{number}.conv1.weight" not in arrays
        )
        for stage in stages
    ]
    width, width_a_group = arrays.shape(f"{stages[0]}.0.conv2.weight", 4)[:2]
    groups = width // width_a_group
    if (groups > 1) != (family.backbone.groups > 1):
        raise arrays.error(
            f"convolutions in {groups} groups",
            "a ResNeXt" if groups == 1 else "a ResNet without groups",
        )
    try:
        return dataclasses.replace(
            family.backbone,
            groups=groups,
            stem_width=arrays.shape(f"{trunk}.stem.conv1.weight", 4)[0],
            stage_widths=_four(arrays.shape(f"{stage}.0.conv3.weight", 4)[0] for stage in stages),
            bottleneck_widths=_four(
                arrays.shape(f"{stage}.0.conv1.weight", 4)[0] for stage in stages
            ),
            num_blocks=_four(num_blocks),
            fpn_width=(arrays.shape("backbone.fpn_lateral2.weight", 4)[0] if is_pyramid else None),
        )
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _four(numbers: Iterable[int]) -> tuple[int, int, int, int]:
    res2, res3, res4, res5 = numbers
    return res2, res3, res4, res5


def _check_pixels(arrays: _Arrays, family: Family) -> None:
    """The checkpoint's mean and deviation of pixels, where it has them, are the family's."""
    for name in ("pixel_mean", "pixel_std"):
        if name in arrays:
            got = arrays.numbers(name)[::-1]
            wanted = getattr(family.picture, name)
            if got.shape != (3,) or np.abs(got - wanted).max() > PIXEL_TOLERANCE:
                raise arrays.error(
                    f"{name} {got.tolist()} (red green blue)", f"picture.{name} {list(wanted)}"
                )


def _read_proposals(
    arrays: _Arrays, proposals: ProposalConfig, family: Family, num_levels: int
) -> ProposalConfig:
    """The proposal network's config, its anchors from where the family has them."""
    num_anchors = arrays.shape(f"{RPN}.anchor_deltas.weight", 4)[0] // 4
    hidden_width = arrays.shape(f"{RPN}.conv.weight", 4)[0]
    proposals = dataclasses.replace(proposals, hidden_width=hidden_width)
    names = [f"{ANCHORS}.{level}" for level in range(num_levels)]
    if family.anchors == "checkpoint":
        levels = tuple(
            tuple(map(tuple, arrays.take(name, (num_anchors, 4)).tolist())) for name in names
        )
        return dataclasses.replace(proposals, anchor_sizes_px=(), cell_anchors=levels)
    if proposals.num_anchors != num_anchors:
        raise arrays.error(
            f"{RPN}.anchor_deltas of {num_anchors} anchors a cell",
            f"proposals with {proposals.num_anchors}",
        )
    for name, sizes_px in zip(names, proposals.anchor_sizes_px):
        if name in arrays:
            got = arrays.take(name, (num_anchors, 4))
            wanted = cell_anchors(sizes_px, proposals.anchor_ratios).numpy()
            if np.abs(got - wanted).max() > ANCHOR_TOLERANCE_PX:
                raise arrays.error(
                    f"{name} {got[0].round(2).tolist()} ...",
                    f"anchors {wanted[0].round(2).tolist()} ..., as "
                    "proposals.anchor_sizes_px has them",
                )
    return proposals


def _some(names: Sequence[str]) -> str:
    """The first of `names`, and how many more there are."""
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more
