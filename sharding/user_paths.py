"""Expands paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path


def expand_user(path: str | os.PathLike[str]) -> Path:
    """The path with ~ and ~NAME expanded; unlike `Path.expanduser`, one of a user who is not known
    stays as it is."""
    return Path(os.path.expanduser(path))
