"""Checkpoint files that are read back and compared when they are written, and read without running
any pickled code."""

from __future__ import annotations

import contextlib
import os
import zipfile
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from boxless.errors import BoxlessError
from sharding.writing.atomic import disk_error
from stages.student.folder.renamed import rename_weights

PLAIN_CLASSES = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
"""Of DeepSpeed, in its checkpoints: they hold numbers."""


class SafeCheckpointEngine(TorchCheckpointEngine):
    """DeepSpeed's checkpoint files, synced to disk, compared with their checksums, and read without
    running any pickled code."""

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        """Write beside, sync, read again, rename. Raises BoxlessError where what is read is not
        what was written, and OSError, naming the file, where there is no room; then nothing of it
        is left."""
        beside = f"{path}.tmp"
        try:
            with open(beside, "wb") as file:
                torch.save(state_dict, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            cause = disk_error(error)
            if cause is not None:
                raise OSError(cause.errno, cause.strerror, path) from error
            raise
        if not _is_intact(beside):
            raise BoxlessError(
                f"{beside}: got other bytes than were written, expected the same. The last "
                "checkpoint is intact: check the disk, then run the same command again"
            )
        os.replace(beside, path)

    def load(self, path: str, map_location: Any = None) -> dict[str, Any]:
        """Tensors, containers and DeepSpeed's `PLAIN_CLASSES`; weights under today's names."""
        with torch.serialization.safe_globals(PLAIN_CLASSES):
            loaded = torch.load(path, map_location=map_location, weights_only=True)
        rename_weights(loaded)
        return loaded


def _is_intact(path: str) -> bool:
    """Whether all parts of a file of torch.save, a zip archive, have the checksums noted in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        return False
