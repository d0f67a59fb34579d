"""Replaces a folder atomically."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def replace_folder(folder: Path, write: Callable[[str], object]) -> None:
    """Let `write` fill a temporary folder beside `folder`, sync it, put it in `folder`'s place. If
    `write` raises, nothing of it is left, and `folder` stays as it was."""
    temporary = folder.parent / f".{folder.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(str(temporary))
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # it may be what fills the disk
        raise
    for file in [*temporary.rglob("*"), temporary]:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
