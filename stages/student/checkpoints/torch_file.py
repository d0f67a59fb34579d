"""Reads PyTorch checkpoints of other projects as tensors by name.

Nothing in the file is run: `torch.load(weights_only=True)` refuses what is more than tensors and
plain values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from boxless.errors import BoxlessError


def read_checkpoint(path: Path, *, expected: str) -> dict[str, torch.Tensor]:
    """The weights in the file, floating ones as float32.

    Half precision, a "state_dict" around and "module." before every name are taken off. Raises
    ValueError with the path on a file that is none, or holds more than tensors and plain values;
    FileNotFoundError where there is none. `expected` says in errors what the file should be.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # broken bytes make the reader raise nearly everything
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BoxlessError(
            f"{path}: got a file that torch.load(weights_only=True) refuses ({first}), expected "
            f"{expected} of tensors and plain values"
        ) from error
    weights: Any = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(weights, dict) or not all(torch.is_tensor(w) for w in weights.values()):
        raise BoxlessError(
            f"{path}: got no tensors by name, expected a state_dict or a file that has one"
        )
    return {
        name.removeprefix("module."): weight.float() if weight.is_floating_point() else weight
        for name, weight in weights.items()
    }
