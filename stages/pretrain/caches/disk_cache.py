"""Outputs of frozen networks in a folder, for later starts and other runs (ours)."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from sharding.writing.atomic import sha256_of, write_bytes
from stages.student.network import Student


class DiskCache:
    """Tensors by name in safetensors files under `folder`, all of one network and one way to make
    its inputs.

    Files are written whole, one a call of `write`, and never changed; several processes may write.
    A file that cannot be read is left out: its tensors are computed again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[Hashable, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self._open(path)

    def __contains__(self, name: Hashable) -> bool:
        return name in self._files

    def read(self, name: Hashable) -> torch.Tensor:
        """The tensor of a name that is in the folder, in 16 bits."""
        return self._files[name].get_tensor(name)

    def write(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Add tensors of new names."""
        if not tensors:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{sha256_of(sorted(tensors))[:16]}.safetensors"
        write_bytes(path, safetensors.torch.save(dict(tensors)))
        self._open(path)

    def _open(self, path: Path) -> None:
        """Files stay open: to open one again for each tensor would read all of its names again."""
        try:
            file = safe_open(path, framework="pt").__enter__()
        except (OSError, SafetensorError):
            return
        self._files |= dict.fromkeys(file.keys(), file)


def maps_name(student: Student, view_settings: Mapping[str, object]) -> str:
    """Name of the folder of maps: of the CNN's weights, of the stages that cells are of, and of how
    pictures are resized, padded and viewed."""
    digest = hashlib.sha256(sha256_of(dict(view_settings)).encode())
    if student.grid.stages != (-1,):
        digest.update(repr(student.grid.stages).encode())
    _add_weights(digest, student.grid.resnet)
    return digest.hexdigest()[:16]


def texts_name(student: Student) -> str:
    """Name of the folder of encodings of texts: of the weights of embeddings and Transformer, and
    of the layers that are taken."""
    digest = hashlib.sha256(repr(student.config.itc_text_layers).encode())
    for part in (student.embeddings, student.fusion):
        _add_weights(digest, part)
    return digest.hexdigest()[:16]


def _add_weights(digest: Any, net: nn.Module) -> None:
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
