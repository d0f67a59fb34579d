"""Whether the package called apex is NVIDIA's. The public index has another of that name.

Reached from `stages.training.engine`, for `precision: apex-o1`, and from `pipeline.cli.doctor`.

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


def look() -> tuple[Kind, str]:
    """Which apex is here, and words about it."""
    spec = find_spec("apex")
    if spec is None:
        return "absent", "not here"
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    about = _about()
    if any((place / folder).is_dir() for place in places for folder in _NVIDIAS_FOLDERS):
        return "nvidia", f"NVIDIA's, {about}"
    return "impostor", f"not NVIDIA's but another package of that name: {about}"


def require_apex() -> None:
    """Raises ValueError unless NVIDIA's apex is here, and a DeepSpeed that takes it."""
    kind, about = look()
    if kind != "nvidia":
        raise ValueError(
            f"pretrain.precision: got apex-o1, but apex is {about}; expected NVIDIA's, built from "
            "https://github.com/NVIDIA/apex. bf16, or fp16 on GPUs without it, need no apex"
        )
    from deepspeed.runtime import config

    if "amp" in getattr(config, "_REMOVED_TOP_LEVEL_CONFIG_KEYS", {}):
        version = importlib.metadata.version("deepspeed")
        raise ValueError(
            f"pretrain.precision: got apex-o1 with DeepSpeed {version}, which takes apex no more; "
            "expected an earlier one that does, or precision fp16, whose loss scaling is "
            "DeepSpeed's own"
        )


def _about() -> str:
    try:
        metadata = importlib.metadata.metadata("apex")
    except importlib.metadata.PackageNotFoundError:
        return "without metadata"
    summary = metadata["Summary"] if "Summary" in metadata else "no summary"
    return f"{metadata['Version']}, {summary}"
