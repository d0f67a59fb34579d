"""Renamed weights and settings of students: old name -> new name."""

from __future__ import annotations

import re
from typing import Any

WEIGHTS = {"mask_cell": "visual_mask_embedding"}
"""Old name of a weight of the student -> new one."""
SETTINGS = {"mask_cell": "visual_mask_embedding"}
"""Old name of a setting in config.json -> new one."""
KEY_MAPPING = {f"^{old}$": new for old, new in WEIGHTS.items()}
"""For transformers' `from_pretrained`: patterns of old names -> new ones."""
_OLD = re.compile(rf"(?<![^./])(?:{'|'.join(WEIGHTS)})$")


def rename_weights(values: Any) -> None:
    """Put a checkpoint's mappings by weights' names under today's names, in place and in order.

    `values`: dicts and lists, nested. A name may follow those of modules, with dots or, as
    in copies of weights, with slashes.
    """
    if isinstance(values, list):
        for value in values:
            rename_weights(value)
    if not isinstance(values, dict):
        return
    if any(isinstance(key, str) and _OLD.search(key) for key in values):
        items = [(_new_name(key), value) for key, value in values.items()]
        values.clear()
        values.update(items)
    for value in values.values():
        rename_weights(value)


def _new_name(key: Any) -> Any:
    return _OLD.sub(lambda match: WEIGHTS[match[0]], key) if isinstance(key, str) else key
