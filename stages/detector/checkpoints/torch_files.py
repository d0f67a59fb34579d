"""Reads files of torch.save and of safetensors without running any pickled code.

torch's own restricted reader (weights_only) does the reading, with our stand-ins of
`pickled_arrays.py` for numpy's arrays and numbers, which training code leaves among weights;
whatever else it meets, it refuses.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from stages.detector.checkpoints.checkpoint_error import CheckpointError
from stages.detector.checkpoints.pickled_arrays import (
    CALLABLES,
    ZIP_HEAD,
    check_legacy,
)

LEGACY_HEAD = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # before: its magic number, pickled
_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (ours, f"{module}.{name}")
    for (module, name), ours in CALLABLES.items()
    if module.startswith("numpy")
]
_ASKED = re.compile(r"GLOBAL (\S+)|unrecognized function (\S+)")
_REASON = re.compile(r"WeightsUnpickler error: *(.*)")


def read_torch(path: Path) -> Any:
    """What torch.save put into `path`, whichever of its two formats.

    Tensors are on the CPU, and stay in the file until they are read where the format allows;
    numpy's arrays are `pickled_arrays.Array`. Raises CheckpointError for a file that is cut off, is
    none of torch's or asks for more than tensors and plain containers; OSError where it cannot be
    opened.
    """
    with open(path, "rb") as file:
        is_zip = file.read(len(ZIP_HEAD)) == ZIP_HEAD
    if is_zip:
        _check_zip(path)
    try:
        if not is_zip:
            with open(path, "rb") as file:
                check_legacy(file, path.stat().st_size)
        with torch.serialization.safe_globals(_STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    # What torch raises for an invalid file is of many kinds, and advises to read it unsafely.
    except Exception as error:
        asked = _ASKED.search(str(error))
        if asked:
            name = asked[1] or asked[2]
            raise CheckpointError(
                f"{path}: got a file that asks for {name[:200]!r}, expected tensors, numbers, text "
                "and plain containers only; no code in it was run; take the file from a source you "
                "trust, or have the project that wrote it save the state_dict alone"
            ) from error
        reason = _REASON.search(str(error)) or re.match("(.*)", str(error))
        assert reason is not None
        raise CheckpointError(
            f"{path}: got no valid file of torch.save ({type(error).__name__}: {reason[1][:200]}), "
            "expected a complete one; fetch it again, and compare its size with where it is from"
        ) from error


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises CheckpointError where it is none."""
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: got no valid safetensors file ({error}), expected a complete one; fetch it "
            "again, and compare its size with where it is from"
        ) from error


def _check_zip(path: Path) -> None:
    """CheckpointError for an archive that is cut off or would grow on reading."""
    try:
        with zipfile.ZipFile(path) as archive:
            num_bytes = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise CheckpointError(
            f"{path}: got an archive without its end ({error}), expected a complete file of "
            "torch.save: it is cut off; fetch it again"
        ) from error
    if num_bytes > path.stat().st_size:
        raise CheckpointError(
            f"{path}: got an archive that says it holds {num_bytes} bytes in a file of "
            f"{path.stat().st_size}, expected torch.save's, which does not compress; fetch it "
            "again"
        )
