"""Rewrites finished shards: merges small ones, splits large ones, changes the order.

Payloads go over as they are, each sample's CRC-32 checked on the way and written again, so a
sample keeps its bytes; failures and notes go over as well, so input = ok + failed holds for the
new set as for the old. In memory are a few numbers a sample; what a manifest says of a sample lies
in a file without a name meanwhile, which goes with the process.

What becomes of every sample is fixed before the first is copied, by the settings and the manifests
of the sources (the fingerprint of each new shard). So a run that was killed leaves out what it had
finished when it is started again, and ends with the same bytes.
"""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any

import numpy as np

from sharding.format.catalog import (
    NAME,
    Catalog,
    ShardEntry,
    load_manifest,
    read_catalog,
    write_catalog,
)
from sharding.format.key_digests import KeyDigests
from sharding.format.manifest import Manifest, SampleEntry, is_done, read_manifest
from sharding.format.schema import EncodedSample, Failure, Note, ShardError, check_key
from sharding.reading.sample_reader import OpenTar, check_crc32, read_payloads
from sharding.writing.atomic import canonical_json, remove_stale, sha256_of, write_bytes
from sharding.writing.shard_writer import END_OF_TAR, write_shard

VERSION = "repack/1"
"""Names the rules of dealing in fingerprints; a change that moves any output raises it."""
SETTINGS = "repack.json"
"""What the folder is made of, written before the first shard: another repack keeps out."""
_NUM_TARS_OPEN = 64
_NUM_READERS = 8
_NUM_AHEAD = 32  # samples in memory


@dataclass(frozen=True, kw_only=True)
class RepackConfig:
    """How large the new shards are and in which order; exactly one of the two sizes is set.

    samples_per_shard: samples of a shard, the last of a split may have fewer.
    shard_bytes: size that a tar does not exceed, if it holds more than one sample.
    seed: of a new order over each whole split; None keeps the order of the sources.
    split: the only split to take over; None takes them all. They stay apart in any case.
    """

    samples_per_shard: int | None = None
    shard_bytes: int | None = None
    seed: int | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        sizes = (self.samples_per_shard, self.shard_bytes)
        if sizes.count(None) != 1 or min(size for size in sizes if size is not None) < 1:
            raise ShardError(
                f"samples_per_shard, shard_bytes: got {sizes[0]}, {sizes[1]}, expected one of "
                "them, at least 1; the other is left out"
            )
        if self.seed is not None and self.seed < 0:
            raise ShardError(f"seed: got {self.seed}, expected at least 0")


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """A shard to be: its tar, its split, and the rows of its samples and of its failures."""

    tar: str
    split: str
    samples: np.ndarray
    failures: np.ndarray


def repack(
    sources: Sequence[Path],
    out: Path,
    config: RepackConfig,
    *,
    on_shard: Callable[[int, int], None] = lambda num_done, num_shards: None,
) -> Catalog:
    """Writes the samples of all `sources` as new shards SPLIT-000000.tar, ... into folder `out`.

    sources: folders of finished shards with catalogs, of one kind and about the same labels.
    out: a new or empty folder, or that of the same repack, begun before.
    on_shard: called after each shard with the numbers done and in all.

    Returns the catalog, which is written last. Raises ShardError where sources disagree, are
    damaged or hold a key twice, and where `out` holds anything else.
    """
    folders = [folder.resolve() for folder in sources]
    if out.resolve() in folders or not folders:
        raise ShardError(
            f"{out}: got it to write into, and {[str(folder) for folder in sources]} to read from, "
            "expected another folder than those, at least one of them"
        )
    catalogs = [read_catalog(folder) for folder in sources]
    kind, about = _agreed(sources, catalogs)
    fingerprint = _fingerprint(config, catalogs)
    _begin(out, fingerprint)
    index = _Index(out)
    for folder, catalog in zip(sources, catalogs):
        index.add_folder(folder, catalog.of_split(config.split) if config.split else catalog.shards)
    index.check_keys()
    shards = _plan(index, config)
    fingerprint |= index.agreed_fingerprint()
    for num_done, shard in enumerate(shards, start=1):
        if not is_done(out / shard.tar, fingerprint):
            write_shard(out / shard.tar, index.read(shard), fingerprint=fingerprint)
        on_shard(num_done, len(shards))
    splits = {shard.tar: shard.split for shard in shards}
    return write_catalog(out, kind=kind, splits=splits, metadata=about)


def _agreed(sources: Sequence[Path], catalogs: Sequence[Catalog]) -> tuple[str, dict[str, Any]]:
    """Kind and about of the new set; ShardError naming the first field in which sources differ.

    Only the source's name, which nothing depends on, may differ: they are listed.
    """
    first = {"kind": catalogs[0].kind, **catalogs[0].metadata}
    for folder, catalog in zip(sources, catalogs):
        other = {"kind": catalog.kind, **catalog.metadata}
        for field in sorted((first.keys() | other.keys()) - {"source"}):
            if first.get(field) != other.get(field):
                raise ShardError(
                    f"{folder / NAME}: {field}: got {_brief(other.get(field))}, expected "
                    f"{_brief(first.get(field))} as in {sources[0]}; repack them apart"
                )
    about = dict(catalogs[0].metadata)
    if names := sorted({str(c.metadata["source"]) for c in catalogs if "source" in c.metadata}):
        about["source"] = " + ".join(names)
    return catalogs[0].kind, about


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fingerprint(config: RepackConfig, catalogs: Sequence[Catalog]) -> dict[str, str]:
    """What shapes the new shards: settings, and content and order of the shards that are read."""
    shards = [
        (shard.split, shard.manifest_sha256) for catalog in catalogs for shard in catalog.shards
    ]
    settings = {name: str(value) for name, value in asdict(config).items()}
    return {"repack": VERSION, **settings, "sources": sha256_of(shards)}


def _begin(out: Path, fingerprint: dict[str, str]) -> None:
    """Says in `out` what it is for; ShardError if it is for something else.

    What is there is never replaced: the shards that it was made of may be gone by now.
    """
    path, data = out / SETTINGS, canonical_json(fingerprint) + b"\n"
    out.mkdir(parents=True, exist_ok=True)
    remove_stale(out, {SETTINGS})
    if path.is_file() and path.read_bytes() != data:
        raise ShardError(
            f"{path}: got the folder of a repack with other settings or sources, expected a new "
            "folder; name another one, or remove this one"
        )
    if not path.is_file() and (foreign := sorted(out.glob("*.tar*"))):
        raise ShardError(
            f"{out}: got {foreign[0].name}, expected a new or empty folder; name another one"
        )
    write_bytes(path, data)


def _plan(index: _Index, config: RepackConfig) -> list[_Shard]:
    """The new shards by name; the failures of a split are spread evenly over its shards."""
    shards = []
    for split in index.splits():
        check_key(
            split
        )  # it becomes the name of a file, and a catalog may come from an unknown source
        samples, failures = index.of_split(split)
        if config.seed is not None:
            samples = samples[_permutation(len(samples), split, config.seed)]
        if config.samples_per_shard is not None:
            edges = list(range(0, len(samples), config.samples_per_shard))
        else:
            assert config.shard_bytes is not None  # RepackConfig has seen to it
            edges = _edges(index.tar_bytes(samples), config.shard_bytes)
        edges = [*edges, len(samples)] if edges else [0, 0]
        num_shards = len(edges) - 1
        shards += [
            _Shard(
                tar=f"{split}-{i:06d}.tar",
                split=split,
                samples=samples[edges[i] : edges[i + 1]],
                failures=failures[
                    i * len(failures) // num_shards : (i + 1) * len(failures) // num_shards
                ],
            )
            for i in range(num_shards)
        ]
    return shards


def _permutation(num: int, split: str, seed: int) -> np.ndarray:
    """As in sharding.order.order: raw words, sorted, are the same under every numpy."""
    words = np.random.SeedSequence(seed, spawn_key=tuple(split.encode()))
    return np.argsort(np.random.PCG64(words).random_raw(num), kind="stable")


def _edges(tar_bytes: np.ndarray, shard_bytes: int) -> list[int]:
    """Where shards start that take in samples as long as they stay within `shard_bytes`."""
    ends = np.cumsum(tar_bytes)
    edges: list[int] = []
    first = 0
    while first < len(ends):
        edges.append(first)
        before = int(ends[first - 1]) if first else 0
        room = before + shard_bytes - len(END_OF_TAR)
        first = max(first + 1, int(np.searchsorted(ends, room, side="right")))
    return edges


class _Index:
    """All that the sources hold, a row each sample or failure, in the order of the sources.

    A row has its line of JSON in a file without a name, and in memory: where the line starts, the
    shard, what a sample takes in a tar, and 128 bits of its key's SHA-256. So a sample costs 36
    bytes of memory, whatever its key and members.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines = tempfile.TemporaryFile(dir=folder)
        self._starts = array("q", [0])
        self._shard_of = array("i")
        self._tar_bytes = array("q")  # 0 for a failure
        self._keys = KeyDigests[Path]()
        self._tars: list[Path] = []
        self._splits: list[str] = []
        self._fingerprint: dict[str, str] | None = None

    def add_folder(self, folder: Path, shards: Sequence[ShardEntry]) -> None:
        """Takes in shards of `folder`; ShardError where one is missing or not as its catalog
        says."""
        for shard in shards:
            tar = folder / shard.tar
            manifest = load_manifest(tar, shard)
            OpenTar(tar).check_size(manifest)
            self._tars.append(tar)
            self._splits.append(shard.split)
            self._keys.add(tar, (entry.key for entry in manifest.samples))
            try:
                self._add(manifest)
                self._lines.flush()
            except OSError as error:
                error.filename = str(self._folder)  # the file has no name
                raise

    def _add(self, manifest: Manifest) -> None:
        notes: dict[str, list[str]] = {}
        for note in manifest.notes:
            notes.setdefault(note.key, []).append(note.reason)
        for entry in manifest.samples:
            self._add_row({"sample": vars(entry), "notes": {entry.key: notes.pop(entry.key, [])}})
            self._tar_bytes.append(_tar_bytes(entry))
        for failure in manifest.failures:
            self._add_row({"failure": vars(failure), "notes": {}})
            self._tar_bytes.append(0)
        if notes:
            self._add_row({"notes": notes})
            self._tar_bytes.append(0)
        known = manifest.fingerprint.items()
        self._fingerprint = dict(
            known if self._fingerprint is None else self._fingerprint.items() & known
        )

    def _add_row(self, row: dict[str, Any]) -> None:
        line = canonical_json(row)
        self._lines.write(line)
        self._starts.append(self._starts[-1] + len(line))
        self._shard_of.append(len(self._tars) - 1)

    def check_keys(self) -> None:
        """ShardError naming the first key, in their order, that is in the sources twice."""
        for (first, _), (second, row), *_ in self._keys.repeated():
            raise ShardError(
                f"{second}: got key {read_manifest(second).samples[row].key!r}, which {first} has "
                "too, expected every key once in the data set; make the keys unique where the "
                "shards are made"
            )

    def agreed_fingerprint(self) -> dict[str, str]:
        """What all sources were shaped by alike: the teacher's hash, say, as "source.teacher"."""
        return {
            name if name.startswith("source.") else f"source.{name}": value
            for name, value in (self._fingerprint or {}).items()
        }

    def splits(self) -> list[str]:
        """The splits, by name."""
        return sorted(set(self._splits))

    def of_split(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """The rows of a split's samples and those of its failures (and of notes without sample)."""
        within = np.array([name == split for name in self._splits])
        within = within[np.frombuffer(self._shard_of, np.int32)]
        is_sample = np.frombuffer(self._tar_bytes, np.int64) > 0
        return np.flatnonzero(within & is_sample), np.flatnonzero(within & ~is_sample)

    def tar_bytes(self, rows: np.ndarray) -> np.ndarray:
        """What samples take in a tar, headers and padding with them."""
        return np.frombuffer(self._tar_bytes, np.int64)[rows]

    def read(self, shard: _Shard) -> Iterator[EncodedSample | Failure | Note]:
        """What goes into a new shard, read some samples ahead; ShardError where one is damaged."""
        open_tar = lru_cache(maxsize=_NUM_TARS_OPEN)(OpenTar)
        with ThreadPoolExecutor(_NUM_READERS) as pool:
            rows = np.concatenate([shard.samples, shard.failures]).tolist()
            for start in range(0, len(rows), _NUM_AHEAD):
                chunk = rows[start : start + _NUM_AHEAD]
                # One after the other: threads would open a tar twice.
                opened = [open_tar(self._tars[self._shard_of[row]]) for row in chunk]
                for results in pool.map(self._results, chunk, opened):
                    yield from results

    def _results(self, row: int, source: OpenTar) -> list[EncodedSample | Failure | Note]:
        line = self._row(row)
        results: list[EncodedSample | Failure | Note] = []
        if "sample" in line:
            results.append(_packed(source, _entry(line["sample"])))
        if "failure" in line:
            results.append(Failure(**line["failure"]))
        for key, reasons in line["notes"].items():
            results += [Note(key=key, reason=reason) for reason in reasons]
        return results

    def _row(self, row: int) -> dict[str, Any]:
        start, stop = self._starts[row : row + 2]
        return json.loads(os.pread(self._lines.fileno(), stop - start, start))


def _tar_bytes(entry: SampleEntry) -> int:
    """What the members of a sample take in a tar, headers and padding with them."""
    return sum(BLOCKSIZE + length + -length % BLOCKSIZE for _, length in entry.members.values())


def _entry(raw: dict[str, Any]) -> SampleEntry:
    """From a line of the index, whose keys are sorted: members go back into the tar's order."""
    members = {ext: tuple(place) for ext, place in sorted(raw["members"].items(), key=_place)}
    return SampleEntry(**{**raw, "members": members})


def _place(member: tuple[str, list[int]]) -> list[int]:
    return member[1]


def _packed(source: OpenTar, entry: SampleEntry) -> EncodedSample:
    """The bytes of a sample; ShardError naming tar and key unless they have its CRC-32."""
    try:
        payloads = read_payloads(source, entry)
        check_crc32(payloads, entry)
    except ShardError as error:
        raise ShardError(f"{source.path}: sample {entry.key}: {error}") from error
    return EncodedSample(key=entry.key, width=entry.width, height=entry.height, payloads=payloads)
