"""Opens the shards behind a path or URL, and reads single samples.

A tar, a folder of shards or a URL of either is read through sharding.reading.store, checked by
CRC-32. Only manifests that are needed are opened.
"""

from __future__ import annotations

import bisect
import difflib
import fnmatch
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharding.format.catalog import NAME as CATALOG
from sharding.format.catalog import ShardEntry, parse_catalog
from sharding.format.manifest import Manifest, manifest_path, parse_manifest
from sharding.format.schema import Sample, ShardError
from sharding.reading.local_store import LocalStore
from sharding.reading.remote_store import open_store
from sharding.reading.sample_reader import make_sample
from sharding.reading.shard_reader import RawSample, ShardReader
from sharding.reading.store import Store, StoreUnavailable
from sharding.reading.watchdog import StatusBoard
from sharding.tools.verify import Fault

_NUM_MANIFESTS = 4
_READ_AT_ONCE = 16
_NUM_NEAREST = 3
_NUM_COMPARED = 4000

Place = tuple[int, int]
"""A sample by number of shard and of sample in it."""


@dataclass(frozen=True)
class Broken:
    """A sample that cannot be shown, and why."""

    key: str
    shard: str
    reason: str


@dataclass(frozen=True)
class Whole:
    """A sample, and the name of the shard that it is in."""

    sample: Sample
    shard: str


class ShardBrowser:
    """Shards [S] in one place.

    where: path or URL as it was given. entries: the shards' lines of a catalog. about: what the
    catalog states about them all, empty without one. words: what is odd about them, for people.
    """

    def __init__(
        self,
        where: str,
        store: Store,
        entries: Sequence[ShardEntry],
        *,
        about: dict[str, Any],
        words: Sequence[str],
    ) -> None:
        self.where, self.entries, self.about, self.words = where, entries, about, words
        self.is_far = not isinstance(store, LocalStore)
        self._shards = ShardReader(
            [(store, entry) for entry in entries], num_manifests=_NUM_MANIFESTS, board=StatusBoard()
        )

    @property
    def num_samples(self) -> int:
        """The samples of all shards."""
        return sum(entry.num_ok for entry in self.entries)

    def manifest(self, shard: int) -> Manifest:
        """Of the shard of that number; ShardError if it is missing or not the catalog's."""
        return self._shards.manifest(shard)

    def spread(self, most: int) -> list[Place]:
        """The places of `most` samples, evenly over all shards; of all where there are fewer."""
        total = self.num_samples
        number = min(most, total)
        starts = [0]
        for entry in self.entries:
            starts.append(starts[-1] + entry.num_ok)
        places = []
        for index in range(number):
            at = index * total // number
            shard = bisect.bisect_right(starts, at) - 1
            places.append((shard, at - starts[shard]))
        return places

    def find(self, patterns: Sequence[str], most: int) -> list[Place]:
        """The places of the first `most` samples that any pattern means, in their order.

        A pattern is a key, or stands for many as file names do in a shell (*, ?, [abc]). Raises
        ShardError, naming the nearest keys, for one that means none. Manifests that cannot be read
        are passed over.
        """
        found: dict[Place, None] = {}
        missed = set(patterns)
        keys: list[str] = []
        for shard in range(len(self.entries)):
            try:
                own = [entry.key for entry in self.manifest(shard).samples]
            except ShardError:
                continue
            places = {key: (shard, number) for number, key in enumerate(own)}
            for pattern in patterns:
                if meant := [pattern] if pattern in places else fnmatch.filter(own, pattern):
                    missed.discard(pattern)
                    found.update((places[key], None) for key in meant)
            if not missed and all(_is_plain(pattern) for pattern in patterns):
                break  # a key is in the data set once
            keys += own
        if missed:
            raise ShardError(_unknown(min(missed), keys, self.where))
        return sorted(found)[:most]

    def read(self, places: Sequence[Place]) -> Iterator[Whole | Broken]:
        """What is at the places, in their order; a few are read at once."""
        for start in range(0, len(places), _READ_AT_ONCE):
            piece = places[start : start + _READ_AT_ONCE]
            for (shard, number), result in zip(piece, self._shards.read(piece, _made)):
                name = self.entries[shard].tar
                if isinstance(result, Fault):
                    yield Broken(result.key or f"sample {number}", name, result.cause)
                else:
                    yield Whole(result, name)


def _made(raw: RawSample) -> Sample:
    return make_sample(raw.members, raw.entry)


def _is_plain(pattern: str) -> bool:
    return not set(pattern) & set("*?[")


def _unknown(pattern: str, keys: Sequence[str], where: str) -> str:
    """That no key is meant, and which ones are near; of very many those beside it by name."""
    ordered = sorted(keys)
    start = max(0, bisect.bisect(ordered, pattern) - _NUM_COMPARED // 2)
    near = difflib.get_close_matches(
        pattern, ordered[start : start + _NUM_COMPARED], n=_NUM_NEAREST, cutoff=0.0
    )
    nearest = ", ".join(map(repr, near)) or "none at all"
    return (
        f"key: got {pattern!r}, expected one of the {len(keys)} keys of {where}, or a pattern of "
        f"some (as '{pattern[:4]}*'); the nearest are {nearest}"
    )


def open_browser(shard: str) -> ShardBrowser:
    """The shards at a path or URL of a tar or a folder; ShardError saying what else is there."""
    if "://" in shard and not shard.startswith(("file://", "local://")):
        folder, name = _split(shard.rstrip("/"))
        return _of_tar(shard, folder, name) if name else _of_folder(shard, folder)
    path = Path(shard.partition("://")[2] or shard)
    if path.is_dir():
        return _of_folder(shard, str(path))
    if not path.exists():
        raise ShardError(
            f"{path}: got no file or folder there, expected a shard (.tar) or a folder of shards"
        )
    if path.suffix != ".tar":
        raise ShardError(f"{path}: got no .tar, expected a shard or a folder of shards")
    return _of_tar(shard, str(path.parent), path.name)


def _split(url: str) -> tuple[str, str]:
    """Folder and tar of a URL; no tar where it is a folder's."""
    folder, _, name = url.rpartition("/")
    return (folder, name) if name.endswith(".tar") else (url, "")


def _of_tar(where: str, folder: str, name: str) -> ShardBrowser:
    """One shard; its catalog, where one is beside it, has the names."""
    store = open_store(folder, cache=None)
    data = _manifest_bytes(store, name)
    manifest = parse_manifest(data, Path(folder) / name)
    entry = _entry(manifest, hashlib.sha256(data).hexdigest())
    try:
        catalog = parse_catalog(store.read_file(CATALOG), f"{store.where}/{CATALOG}")
    except ShardError as error:
        words = [f"Names are missing, classes are shown by number: {error}."]
        return ShardBrowser(where, store, [entry], about={}, words=words)
    if entry.manifest_sha256 in {other.manifest_sha256 for other in catalog.shards}:
        words = []
    else:
        words = [f"The {CATALOG} beside it knows another shard of this name: names may not fit."]
    return ShardBrowser(where, store, [entry], about=catalog.metadata, words=words)


def _manifest_bytes(store: Store, name: str) -> bytes:
    try:
        return store.read_file(manifest_path(Path(name)).name)
    except StoreUnavailable:
        raise
    except ShardError as error:
        raise ShardError(
            f"{error}, expected a manifest beside the tar: the shard is unfinished, or not ours; "
            "run the stage that writes it again, or `boxless index` for tars that others wrote"
        ) from error


def _of_folder(where: str, folder: str) -> ShardBrowser:
    """All shards of a folder: those of its catalog, or those finished so far."""
    store = open_store(folder, cache=None)
    try:
        data = store.read_file(CATALOG)
    except ShardError as error:
        if isinstance(store, LocalStore):
            return _unfinished(where, store, Path(folder))
        raise ShardError(
            f"{error}, expected the catalog of a folder of finished shards, or the URL of one .tar"
        ) from error
    catalog = parse_catalog(data, f"{store.where}/{CATALOG}")
    return ShardBrowser(where, store, catalog.shards, about=catalog.metadata, words=[])


def _unfinished(where: str, store: Store, folder: Path) -> ShardBrowser:
    """The shards of a folder without a catalog that have manifests."""
    entries = []
    words = [
        f"Not finished, there is no {CATALOG} yet: names are missing, classes are shown by number."
    ]
    for path in sorted(folder.glob("*.tar.json")):
        try:
            data = store.read_file(path.name)
            manifest = parse_manifest(data, path.with_suffix(""))
        except ShardError as error:
            words.append(f"Left out: {error}.")
        else:
            entries.append(_entry(manifest, hashlib.sha256(data).hexdigest()))
    if not entries:
        inside = [name for name in ("objects", "images") if (folder / name / CATALOG).is_file()]
        hint = f"; did you mean {folder / inside[0]}?" if inside else ""
        raise ShardError(f"{folder}: got no shard with a manifest, expected at least one{hint}")
    return ShardBrowser(where, store, entries, about={}, words=words)


def _entry(manifest: Manifest, digest: str) -> ShardEntry:
    """The line that a catalog would have; of the split it does not know."""
    return ShardEntry(
        tar=manifest.tar,
        split="",
        bytes=manifest.tar_bytes,
        manifest_sha256=digest,
        num_input=manifest.num_input,
        num_ok=manifest.num_ok,
        num_failed=manifest.num_failed,
    )
