"""Values of command-line arguments."""

from __future__ import annotations

from pathlib import Path


def user_path(text: str) -> Path:
    """A path with ~ expanded, which shells do not do in `--run=~/x`."""
    return Path(text).expanduser()
