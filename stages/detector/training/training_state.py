"""The state of a training that was stopped: one file, whole or absent.

Reached from `stages/detector/training/train.py`. The file is a safetensors file of the weights
(`model/NAME`) and of SGD's momentum (`momentum/NAME`); its header carries the rest as JSON: the
steps done, the seconds they took, and the fingerprint of the training it belongs to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from sharding.writing.atomic import write_bytes

STATE = "boxless/teach/1"  # the header's key, and the version of what is under it


class State(NamedTuple):
    """How far a training has come."""

    fingerprint: str
    num_steps: int
    seconds: float


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.SGD, state: State) -> None:
    """Writes `path`; an older one stays until this one is whole."""
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        momentum = optimizer.state[parameter].get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum/{name}"] = momentum
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {STATE: json.dumps(state._asdict(), sort_keys=True)}
    write_bytes(path, safetensors.torch.save(whole, header))


def read_state(path: Path) -> State | None:
    """How far the training in `path` has come; None without a file.

    Raises ValueError for a file that is no checkpoint of ours: it is not overwritten unasked.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return State(**json.loads(file.metadata()[STATE]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: got {type(error).__name__}: {error}, expected a checkpoint of boxless "
            "teach; remove the file to train from the start"
        ) from error


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.SGD) -> None:
    """Puts weights and momentum of `path` into `model` and `optimizer`, bit for bit."""
    tensors = safetensors.torch.load_file(path)
    model.load_state_dict(
        {
            name.removeprefix("model/"): tensor
            for name, tensor in tensors.items()
            if name.startswith("model/")
        }
    )
    for name, parameter in model.named_parameters():
        if f"momentum/{name}" in tensors:
            momentum = torch.empty_like(parameter).copy_(tensors[f"momentum/{name}"])
            optimizer.state[parameter]["momentum_buffer"] = momentum
