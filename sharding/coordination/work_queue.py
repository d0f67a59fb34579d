"""The shards of a folder that are still to be written: all without a manifest of the right
settings.

A complete shard can be requested again by an empty file OUT/.claims/TAR.again. It is removed after
the shard has been written again, so that a request survives a kill.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from sharding.format.manifest import is_done, manifest_path
from sharding.format.manifest_summary import read_manifest_summary
from sharding.format.schema import ShardError

FOLDER = ".claims"
AGAIN = ".again"


def request_rewrites(out: Path, tars: Iterable[str]) -> None:
    """Request that the next workers in `out` write these complete shards again."""
    for tar in tars:
        (out / FOLDER).mkdir(parents=True, exist_ok=True)
        (out / FOLDER / (tar + AGAIN)).touch()


def rewrite_requests(out: Path) -> set[str]:
    """The tars in `out` that are requested again."""
    try:
        names = os.listdir(out / FOLDER)
    except FileNotFoundError:
        return set()
    return {name.removesuffix(AGAIN) for name in names if name.endswith(AGAIN)}


class WorkQueue:
    """The shards of a folder that are not known to be done, each with the fingerprint that its
    manifest has to have; left: their tars.

    To know that a shard is done its whole manifest is read: once for each version of manifest and
    tar, and only when nothing is left that has none, so that work begins at once in a folder of
    thousands.
    """

    def __init__(self, out: Path, fingerprints: Mapping[str, Mapping[str, str]]) -> None:
        self._out, self._fingerprints = out, fingerprints
        self._order, self.left = deque(fingerprints), set(fingerprints)
        self._rewrites: set[str] = set()
        self._checked_version: dict[str, tuple[object, ...]] = {}

    def begin(self, number: int) -> None:
        """Start at place `number` of the queue (modulo its length), and read which shards are
        requested again."""
        self._rewrites = rewrite_requests(self._out)
        self._order.rotate(-(number % max(len(self._order), 1)))

    def appear_done(self) -> set[str]:
        """The shards that are complete according to the summaries of their manifests (fast)."""
        return {
            tar
            for tar in self.left
            if not self._is_rewrite_requested(tar) and self._has_right_summary(tar)
        }

    def in_order(self) -> Iterator[str]:
        """Each that is left, once, those without a manifest first; the next call continues behind
        the last one that was taken."""
        with_manifest = []
        for _ in range(len(self._order)):
            tar = self._order.popleft()
            if tar in self.left:
                self._order.append(tar)
                if manifest_path(self._out / tar).exists():
                    with_manifest.append(tar)
                else:
                    yield tar
        yield from with_manifest

    def is_done(self, tar: str) -> bool:
        """Whether it is done now; then it is no longer left."""
        if self._is_rewrite_requested(tar):
            return False
        try:
            found = os.stat(manifest_path(self._out / tar))
        except FileNotFoundError:
            return False
        version = (found.st_ino, found.st_mtime_ns, *_version_of(self._out / tar))
        if self._checked_version.get(tar) == version:
            return False
        self._checked_version[tar] = version
        done = is_done(self._out / tar, self._fingerprints[tar])
        if done:
            self.left.discard(tar)
        return done

    def _is_rewrite_requested(self, tar: str) -> bool:
        """Whether it is requested again and has not been written since."""
        if tar in self._rewrites and not (self._out / FOLDER / (tar + AGAIN)).exists():
            self._rewrites.remove(tar)
        return tar in self._rewrites

    def _has_right_summary(self, tar: str) -> bool:
        try:
            return read_manifest_summary(self._out / tar).fingerprint == self._fingerprints[tar]
        except ShardError:
            return False


def _version_of(path: Path) -> tuple[int, ...]:
    """What changes when a file is replaced, grows or comes into sight; empty where it is not."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size
