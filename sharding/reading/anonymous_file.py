"""An unlinked file that processes share and that disappears with them.

It has no name from the start, in no folder and not in /dev/shm, so nothing is left of it when the
last process that holds it ends, even if all are killed. Forked children hold it by themselves;
children that are spawned are handed its descriptor.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from multiprocessing import context, reduction
from typing import Any


class AnonymousFile:
    """`descriptor` of the file, and `memory`: its first `num_mapped_bytes`, zeros at first.

    on_disk: in the folder for temporary files (TMPDIR says which) instead of in memory.
    A copy that is pickled for anything but a child being spawned begins as a new, empty file.
    """

    def __init__(self, num_mapped_bytes: int, *, on_disk: bool) -> None:
        self._num_mapped_bytes, self._on_disk = num_mapped_bytes, on_disk
        self._hold(_create(on_disk))

    def _hold(self, descriptor: int) -> None:
        self.descriptor = descriptor
        # A no-op for a child that is handed a file of this size or more.
        if os.fstat(descriptor).st_size < self._num_mapped_bytes:
            try:
                os.ftruncate(descriptor, self._num_mapped_bytes)
            except OSError as error:
                error.filename = tempfile.gettempdir() if self._on_disk else "a file in memory"
                raise
        self.memory = mmap.mmap(descriptor, self._num_mapped_bytes)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def __getstate__(self) -> dict[str, Any]:
        spawning = context.get_spawning_popen() is not None
        return {
            "num_mapped_bytes": self._num_mapped_bytes,
            "on_disk": self._on_disk,
            "handed": reduction.DupFd(self.descriptor) if spawning else None,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._num_mapped_bytes, self._on_disk = state["num_mapped_bytes"], state["on_disk"]
        handed = state["handed"]
        self._hold(handed.detach() if handed else _create(self._on_disk))


def _create(on_disk: bool) -> int:
    if not on_disk:
        return os.memfd_create("boxless")
    with tempfile.TemporaryFile(prefix="boxless-") as file:
        return os.dup(file.fileno())
