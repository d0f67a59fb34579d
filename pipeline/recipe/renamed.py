"""Renamed keys and values of recipes, and unused keys: old ones are read with a warning."""

from __future__ import annotations

import copy
import warnings
from typing import Any

KEYS = {
    "finetune.batch_size": "finetune.micro_batch_size",
    "student.mask_cell": "student.visual_mask_embedding",
    "pretrain.omvm.hide": "pretrain.omvm.mask_probability",
    # teach.net was one flat mapping.
    "teach.net.proposal_iou": "teach.net.proposals.iou",
    "teach.net.box_head": "teach.net.boxes.head",
    "teach.net.object_iou": "teach.net.choice.iou",
    **{
        f"teach.net.{name}": f"teach.net.{part}.{name}"
        for part, names in {
            "picture": ("shorter_px", "longer_px", "pixel_mean", "pixel_std"),
            "backbone": ("stem_width", "stage_widths", "stage_strides"),
            "proposals": (
                "anchor_sizes_px",
                "anchor_ratios",
                "num_candidates",
                "num_proposals",
            ),
            "boxes": (
                "num_bins",
                "sampling_ratio",
                "feature_size",
                "attribute_embedding_size",
                "attribute_hidden_size",
            ),
            "choice": ("score_threshold", "max_objects", "num_top"),
        }.items()
        for name in names
    },
}
"""Old dotted key -> new one."""
VALUES: dict[tuple[str, str], Any] = {
    ("finetune.task", "truth"): "nlvr",
    ("distill.similarity", "lexical"): {"kind": "lexical"},
}
"""(dotted key, old value) -> new value."""
UNUSED = {"evaluate.pairs_per_batch": "scores do not depend on batches any more"}
"""Dotted key that is taken and left out -> why."""


def with_new_names(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a recipe under today's names. The old name's value replaces one under the new
    name. FutureWarning for each old one."""
    for message in rename(values):
        warnings.warn(message, FutureWarning, stacklevel=2)
    return values


def rename(values: dict[str, Any]) -> list[str]:
    """Puts values under today's names, in place, and says which had old ones."""
    messages = []
    for old, new in KEYS.items():
        above, name = _mapping(values, old), old.rpartition(".")[2]
        if name in above:
            _make_mappings(values, new)
            messages.append(f"{old} is called {new} now")
            _mapping(values, new)[new.rpartition(".")[2]] = above.pop(name)
    for (key, old_value), new_value in VALUES.items():
        above, name = _mapping(values, key), key.rpartition(".")[2]
        if above.get(name) == old_value:
            messages.append(f"{key}: {old_value} is called {new_value} now")
            above[name] = copy.deepcopy(new_value)
    for key, why in UNUSED.items():
        if _mapping(values, key).pop(key.rpartition(".")[2], None) is not None:
            messages.append(f"{key} has no use any more: {why}")
    return messages


def _mapping(values: dict[str, Any], key: str) -> dict[str, Any]:
    """The mapping that a dotted key is in; an empty one where there is none."""
    for part in key.split(".")[:-1]:
        inner = values.get(part)
        values = inner if isinstance(inner, dict) else {}
    return values


def _make_mappings(values: dict[str, Any], key: str) -> None:
    """Makes the mappings that a dotted key is in; what is there stays."""
    for part in key.split(".")[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            return  # a fault that the recipe's checks name
