"""Backs up the output of a training stage before it starts again with other settings.

A result is never deleted: it is renamed to NAME.1, or the next number that is free. What an attempt
left that ended before its first checkpoint (as of files that were refused) is none, and goes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.runner.run_folder import RunFolder
from pipeline.runner.stages.stage_graph import StageKind

WEIGHTS = (".safetensors", ".pt")
"""How files of weights, and of checkpoints, end."""


def back_up(run: RunFolder, kind: StageKind) -> Iterator[str]:
    """Move the stage's folders away; what was done, in words, once it is done."""
    there = [name for name in kind.folders if (run.root / name).exists()]
    if not any(_may_hold_weights(run.root / name) for name in there):
        for name in there:
            shutil.rmtree(run.root / name)
        return
    number = 1
    while any((run.root / f"{name}.{number}").exists() for name in kind.folders):
        number += 1
    for name in there:
        shutil.move(run.root / name, run.root / f"{name}.{number}")
        yield f"kept the earlier {name} as {name}.{number}"
    if number > 1:
        size = sum(_num_bytes(run.root / f"{name}.{n}") for name in there for n in range(1, number))
        yield (
            f"kept from before: {', '.join(f'{name}.1 to .{number - 1}' for name in there)}, "
            f"{size / 1e6:,.0f} MB; nothing reads them, so delete what you do not need"
        )


def _may_hold_weights(folder: Path) -> bool:
    """Links lead to other disks, where weights may be."""
    return any(path.is_symlink() or path.suffix in WEIGHTS for path in (folder, *folder.rglob("*")))


def _num_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
