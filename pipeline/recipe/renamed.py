"""Keys and values of recipes that have another name now, or are of no use any more: the old ones
are still taken, with a warning."""

from __future__ import annotations

import warnings
from typing import Any

KEYS = {
    "finetune.batch_size": "finetune.micro_batch_size",
    "student.mask_cell": "student.visual_mask_embedding",
    "pretrain.omvm.hide": "pretrain.omvm.mask_probability",
}
"""Old dotted key -> new one, in the same mapping."""
VALUES = {("finetune.task", "truth"): "nlvr"}
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
        above = _mapping(values, old)
        name, new_name = old.rpartition(".")[2], new.rpartition(".")[2]
        if name in above:
            messages.append(f"{old} is called {new} now")
            above[new_name] = above.pop(name)
    for (key, old_value), new_value in VALUES.items():
        above, name = _mapping(values, key), key.rpartition(".")[2]
        if above.get(name) == old_value:
            messages.append(f"{key}: {old_value} is called {new_value} now")
            above[name] = new_value
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
