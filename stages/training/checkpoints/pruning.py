"""Removes old checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path


def remove_old_checkpoints(folder: Path, *, newest: str, keep: int) -> None:
    """Remove all checkpoints up to the one named `newest` but the last `keep`, at least 1.

    A later one is half of a save that was killed: it does not count among the kept.
    """
    saved = sorted(path for path in folder.glob("step-*") if path.name <= newest)
    for old in saved[:-keep]:
        shutil.rmtree(old)
