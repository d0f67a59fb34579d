"""What is left to do in a folder of shards: all that has no manifest of the right settings.

Reached from sharding.claims. Also how a done shard is asked for once more: by an empty file
OUT/.claims/TAR.again, which goes when the shard has been written again and not before, so that what
was asked survives every kill.
"""
from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from sharding.manifest import manifest_path

FOLDER = ".claims"
AGAIN = ".again"


def ask_again(out: Path, tars: Iterable[str]) -> None:
    """Ask the next workers in `out` to write these shards again although they are done."""
    for tar in tars:
        (out / FOLDER).mkdir(parents=True, exist_ok=True)
        (out / FOLDER / (tar + AGAIN)).touch()


def asked_again(out: Path) -> set[str]:
    """The tars in `out` that are asked for once more."""
    try:
        names = os.listdir(out / FOLDER)
    except FileNotFoundError:
        return set()
    return {name.removesuffix(AGAIN) for name in names if name.endswith(AGAIN)}


class Pending:
    """The shards of a folder that are not known to be done.

    `is_done` says whether a tar is finished and of the right settings; it is asked once for each
    version of a manifest. left: the tars not known to be done.
    """

    def __init__(self, out: Path, tars: Collection[str], is_done: Callable[[str], bool]) -> None:
        self._out, self._is_done = out, is_done
        self._line, self.left = deque(tars), set(tars)
        self._again: set[str] = set()
        self._looked_at: dict[str, tuple[int, int]] = {}

    def begin(self, number: int) -> None:
        """A first look at all, from place `number` of the line on (round and round)."""
        self._again = asked_again(self._out)
        self._line.rotate(-(number % max(len(self._line), 1)))
        for tar in self.in_turn():
            self.is_done(tar)

    def in_turn(self) -> Iterator[str]:
        """Each that is left, once; the next call goes on behind the last one that was taken."""
        for _ in range(len(self._line)):
            tar = self._line.popleft()
            if tar in self.left:
                self._line.append(tar)
                yield tar

    def is_done(self, tar: str) -> bool:
        """Whether it is done now; then it is no longer left."""
        if tar in self._again:
            if (self._out / FOLDER / (tar + AGAIN)).exists():
                return False
            self._again.remove(tar)
        try:
            found = os.stat(manifest_path(self._out / tar))
        except FileNotFoundError:
            return False
        version = (found.st_ino, found.st_mtime_ns)
        if self._looked_at.get(tar) == version:
            return False
        self._looked_at[tar] = version
        done = self._is_done(tar)
        if done:
            self.left.discard(tar)
        return done
