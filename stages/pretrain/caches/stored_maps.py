"""Outputs of a frozen CNN in a folder, for the next start of a run and for other runs (ours)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from sharding.writing.atomic import sha256_of, write_bytes
from stages.student.network import Student


class StoredMaps:
    """Tensors by view in safetensors files under `folder`, of one CNN and one way to see pictures.

    Files are written whole, one a call of `write`, and never changed; several processes may write.
    A file that cannot be read is left out: its maps are computed anew.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    self._files |= dict.fromkeys(file.keys(), path)
            except (OSError, SafetensorError):
                continue

    def __contains__(self, view: str) -> bool:
        return view in self._files

    def read(self, view: str) -> torch.Tensor:
        """The maps of a view that is in the folder: [X, R, S] in 16 bits."""
        with safe_open(self._files[view], framework="pt") as file:
            return file.get_tensor(view)

    def write(self, maps: Mapping[str, torch.Tensor]) -> None:
        """Add the maps of new views."""
        if not maps:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{sha256_of(sorted(maps))[:16]}.safetensors"
        write_bytes(path, safetensors.torch.save(dict(maps)))
        self._files |= dict.fromkeys(maps, path)


def maps_name(student: Student, view_settings: Mapping[str, object]) -> str:
    """Name of the folder of maps: of the CNN's weights, and of how pictures are resized, padded and
    viewed."""
    digest = hashlib.sha256(sha256_of(dict(view_settings)).encode())
    for name, tensor in sorted(student.grid.resnet.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
