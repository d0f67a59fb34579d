"""Finds torchvision's compiled operators at run time; they are optional.

An installed torchvision that was built for another torch fails on import with a RuntimeError or
an OSError rather than an ImportError, so all three mean "not here" and our own code runs.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType


@functools.lru_cache(maxsize=None)
def find_torchvision_ops() -> ModuleType | None:
    """`torchvision.ops` where it works with this torch, else None."""
    try:
        return importlib.import_module("torchvision.ops")
    except (ImportError, RuntimeError, OSError):
        return None
