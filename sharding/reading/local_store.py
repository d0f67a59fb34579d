"""A store of shards in a local folder."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sharding.format.manifest import Manifest
from sharding.format.schema import ShardError
from sharding.reading.sample_reader import (
    Members,
    OpenTar,
    check_crc32,
    span_of,
    split_off_picture,
    split_span,
)
from sharding.reading.store import SampleRequest

# File descriptors a process holds; carried samples reach back beyond the current window.
NUM_TARS_OPEN = 64


class LocalStore:
    """Shards in a folder, read by pread."""

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        self._folder = folder.absolute()  # tars are opened later, perhaps from another folder
        self._make_cache()

    def read_file(self, name: str) -> bytes:
        """See Store."""
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            raise ShardError(f"{self.where}/{name}: got {error.strerror}") from error

    def read_samples(self, wanted: Sequence[SampleRequest]) -> Iterator[Members | ShardError]:
        """See Store. One after the other, as they are taken; all but the pictures into one array.

        One array, because a process that asks for and frees much memory in small pieces spends more
        time on getting it from the kernel, page by page, than on reading.
        """
        parted = [split_off_picture(entry) for _, entry in wanted]
        spans = [span_of(parts[2] if parts else entry) for parts, (_, entry) in zip(parted, wanted)]
        tars: dict[str, OpenTar | ShardError] = {}
        for manifest, _ in wanted:
            if manifest.tar not in tars:
                tars[manifest.tar] = self._opened(manifest)
        array = np.empty(
            sum(
                num_bytes
                for (manifest, _), (_, num_bytes) in zip(wanted, spans)
                if isinstance(tars[manifest.tar], OpenTar)
            ),
            np.uint8,
        )
        for (manifest, entry), parts, (offset, num_bytes) in zip(wanted, parted, spans):
            tar = tars[manifest.tar]
            if isinstance(tar, ShardError):
                yield tar
                continue
            span, array = array[:num_bytes], array[num_bytes:]
            try:
                tar.read_into(span, offset)
                members = split_span(span, parts[2] if parts else entry)
                if parts:
                    members = {parts[0]: tar.read(*parts[1]), **members}
                check_crc32(members, entry)
                yield members
            except ShardError as error:
                yield error

    def _opened(self, manifest: Manifest) -> OpenTar | ShardError:
        """The tar, of the size that its manifest says."""
        try:
            tar = self._tar(manifest.tar)
            tar.check_size(manifest)
            return tar
        except ShardError as error:
            return error

    def _open(self, name: str) -> OpenTar:
        return OpenTar(self._folder / name)

    def _make_cache(self) -> None:
        self._tar = functools.lru_cache(maxsize=NUM_TARS_OPEN)(self._open)

    def __getstate__(self) -> dict[str, Any]:
        """Without open files: the process that unpickles opens its own."""
        return {"where": self.where, "_folder": self._folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_cache()
