"""Saves and loads the state of an interrupted training, in one file.

The file is a safetensors file of the weights (`model/NAME`) and of what the optimizer keeps for
each (`optimizer/KEY/NAME`); its header carries the rest as JSON: the steps done, the seconds they
took, the fingerprint of the training it belongs to, and of the best weights the score.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from boxless.errors import BoxlessError
from sharding.writing.atomic import write_bytes

STATE = "boxless/teach/2"  # the header's key, and the version of what is under it


class State(NamedTuple):
    """How far a training has come."""

    fingerprint: str
    num_steps: int
    seconds: float
    score: float | None = None  # of the weights, where they were scored
    loss_scale: float = 1.0
    sound_steps: int = 0  # since the loss scale last changed


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None, state: State
) -> None:
    """Writes `path`, without `optimizer` the weights alone; an older one stays until this one is
    whole."""
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    kept = optimizer.state if optimizer is not None else {}
    for name, parameter in model.named_parameters():
        for key, value in kept.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer/{key}/{name}"] = value
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
        raise BoxlessError(
            f"{path}: got {type(error).__name__}: {error}, expected a checkpoint of boxless "
            "teach; remove the file to train from the start"
        ) from error


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Puts weights and the optimizer's state of `path` into `model` and `optimizer`, bit for
    bit; the weights alone without `optimizer`."""
    tensors = safetensors.torch.load_file(path)
    model.load_state_dict(
        {
            name.removeprefix("model/"): tensor
            for name, tensor in tensors.items()
            if name.startswith("model/")
        }
    )
    if optimizer is None:
        return
    kept: dict[str, set[str]] = {}
    for name in tensors:
        if name.startswith("optimizer/"):
            _, key, of = name.split("/")
            kept.setdefault(of, set()).add(key)
    for name, parameter in model.named_parameters():
        for key in sorted(kept.get(name, ())):
            value = tensors[f"optimizer/{key}/{name}"]
            if value.shape == parameter.shape:  # in the parameter's memory order
                value = torch.empty_like(parameter).copy_(value)
            optimizer.state[parameter][key] = value.to(parameter.device)
