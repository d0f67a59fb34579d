"""Reads PyTorch checkpoints of other projects as tensors by name.

Nothing in the file is run: what is more than tensors and plain values is refused, and so is what
would take much more memory than the file has bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from boxless.errors import BoxlessError
from stages.detector.checkpoints.pickled_arrays import check_dense
from stages.detector.checkpoints.torch_files import read_torch

# Weights may be shared by two or three names; a file of few bytes may name them a million times.
_MOST_TIMES_THE_FILE = 4


def read_checkpoint(path: Path, *, expected: str) -> dict[str, torch.Tensor]:
    """The weights in the file, floating ones as float32.

    Half precision, a "state_dict" around and "module." before every name are taken off. Raises
    ValueError with the path on a file that is none, holds more than tensors and plain values, or
    tensors of more numbers than it has bytes for; FileNotFoundError where there is none. `expected`
    says in errors what the file should be.
    """
    try:
        loaded = read_torch(path)
    except BoxlessError as error:
        raise BoxlessError(f"{error} (expected {expected} of tensors and plain values)") from error
    weights: Any = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(weights, dict) or not all(torch.is_tensor(w) for w in weights.values()):
        raise BoxlessError(
            f"{path}: got no tensors by name, expected a state_dict or a file that has one"
        )
    _check_sizes(path, weights)
    return {
        name.removeprefix("module."): weight.float() if weight.is_floating_point() else weight
        for name, weight in weights.items()
    }


def _check_sizes(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """ValueError where a tensor is not dense, or all of them are much larger than the file."""
    for name, weight in weights.items():
        try:
            check_dense(weight)
        except BoxlessError as error:
            raise BoxlessError(f"{path}: got {error} as {name}, expected dense weights") from error
    num_bytes = sum(weight.numel() * weight.element_size() for weight in weights.values())
    if num_bytes > _MOST_TIMES_THE_FILE * path.stat().st_size:
        raise BoxlessError(
            f"{path}: got tensors of {num_bytes} bytes in all in a file of {path.stat().st_size}, "
            "expected a file of its own weights, not of few that are named many times"
        )
