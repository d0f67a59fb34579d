"""Detects NVIDIA's apex. The public index has another package of that name.

NVIDIA's is only built from its source and holds ``apex/amp`` or ``apex/normalization``; the other
is a web toolkit. Nothing is imported to find out, since importing the wrong one runs its code.
"""

from __future__ import annotations

import importlib.metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

Kind = Literal["nvidia", "impostor", "absent"]
_NVIDIAS_FOLDERS = ("amp", "normalization", "optimizers")


def installed_apex() -> tuple[Kind, str]:
    """Which apex is here, and words about it."""
    spec = find_spec("apex")
    if spec is None:
        return "absent", "not here"
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    about = _about()
    if any((place / folder).is_dir() for place in places for folder in _NVIDIAS_FOLDERS):
        return "nvidia", f"NVIDIA's, {about}"
    return "impostor", f"not NVIDIA's but another package of that name: {about}"


def _about() -> str:
    try:
        metadata = importlib.metadata.metadata("apex")
    except importlib.metadata.PackageNotFoundError:
        return "without metadata"
    summary = metadata["Summary"] if "Summary" in metadata else "no summary"
    return f"{metadata['Version']}, {summary}"
