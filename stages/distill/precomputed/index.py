"""An index of rows by id in files of hundreds of gigabytes, made in one pass and kept.

26 bytes a row in memory, whatever its length. Where there is a folder for it, what was found in a
file is kept there, written whole or not at all, so a pass that was stopped continues with the file
that it was in; other workers of the same host and folder wait for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from sharding.writing.atomic import replacing, sha256_of
from stages.distill.precomputed.ids import Rule, hash_of
from stages.progress import Progress

VERSION = "features-index/1"
"""Names the rules of this pass; a change that finds other rows raises it."""
END_BYTES = 1 << 20
NUM_SHOWN = 5
_MIB = 1 << 20
_ARRAYS = ("hashes", "offsets", "lengths")


class Place(NamedTuple):
    """A row: which file, its first byte, its length in bytes. Formats without offsets count."""

    file: int
    offset: int
    length: int


class ScannedRow(NamedTuple):
    """A row as a scan meets it; `id` is None where it has none, and `fault` then says why."""

    id: str | None
    offset: int
    length: int
    fault: str = ""


Scan = Callable[[BinaryIO], Iterator[ScannedRow]]


@dataclass(frozen=True, kw_only=True)
class Part:
    """What the pass over one file found: [R] each, and rows without an id, counted and named."""

    hashes: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    num_faults: int
    faults: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Index:
    """The rows of all files by the hashes of their compared ids.

    hashes: u8 [R] rising, equal ones in the files' order; files, offsets, lengths: [R].
    num_faults: rows without an id; faults: the first of them in words.
    fingerprint: of all of it and of the files' sizes and ends.
    """

    hashes: np.ndarray
    files: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    num_faults: int
    faults: tuple[str, ...]
    fingerprint: str
    unique: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "unique", np.unique(self.hashes))

    def find(self, compared: str) -> list[Place]:
        """The places of an id in the files' order, [] where there are none."""
        return self.places(hash_of(compared))

    def places(self, hashed: int) -> list[Place]:
        """As find, of the hash of an id."""
        value = np.uint64(hashed)
        first, last = (int(np.searchsorted(self.hashes, value, s)) for s in ("left", "right"))
        return [
            Place(int(self.files[i]), int(self.offsets[i]), int(self.lengths[i]))
            for i in range(first, last)
        ]

    def repeated(self) -> np.ndarray:
        """The hashes, u8, of ids with several rows."""
        return np.unique(self.hashes[1:][self.hashes[1:] == self.hashes[:-1]])


def file_signature(path: Path) -> str:
    """SHA-256 of a file's size and of the first and last MiB of its bytes.

    All bytes of a file of hundreds of gigabytes would take longer than the whole stage. A change in
    the middle that moves no row and keeps every length goes unseen.
    """
    size = path.stat().st_size
    with open(path, "rb") as source:
        head = source.read(END_BYTES)
        source.seek(max(0, size - END_BYTES))
        ends = [hashlib.sha256(end).hexdigest() for end in (head, source.read(END_BYTES))]
    return sha256_of([size, *ends])


def index_files(
    paths: Sequence[Path], scan: Scan, *, name: str, rule: Rule, folder: Path | None, show: bool
) -> Index:
    """The index of all rows that `scan` finds in `paths`, by `rule`.

    name: of scan and rule, in words: an index kept in `folder` under another one is not taken.
    """
    parts, signatures = [], []
    for path in paths:
        signature = sha256_of([VERSION, name, file_signature(path)])
        signatures.append(signature)
        parts.append(_part(path, scan, rule, signature, folder, show))
    return join_parts(parts, signatures)


def index_names(names: Sequence[str], *, rule: Rule, signature: str) -> Index:
    """The index of `names` that lie in a list: a place's offset is the number in it.

    For formats that keep their own index, as folders and LMDB do.
    """
    rows = (ScannedRow(name, number, 0) for number, name in enumerate(names))
    return join_parts([_collect(rows, rule)], [signature])


def join_parts(parts: Sequence[Part], signatures: Sequence[str]) -> Index:
    """One index over the parts of several files, in their order."""
    hashes = np.concatenate([np.empty(0, np.uint64), *(part.hashes for part in parts)])
    order = np.argsort(hashes, kind="stable")
    lengths = [len(part.hashes) for part in parts]
    files = np.repeat(np.arange(len(parts), dtype=np.uint16), lengths)
    offsets, sizes = (
        np.concatenate([np.empty(0, np.int64), *(getattr(part, name) for part in parts)])[order]
        for name in ("offsets", "lengths")
    )
    digest = hashlib.sha256("".join(signatures).encode())
    for array in (hashes[order], files[order], offsets, sizes):
        digest.update(array.tobytes())
    return Index(
        hashes=hashes[order],
        files=files[order],
        offsets=offsets,
        lengths=sizes,
        num_faults=sum(part.num_faults for part in parts),
        faults=tuple(fault for part in parts for fault in part.faults)[:NUM_SHOWN],
        fingerprint=digest.hexdigest(),
    )


def _part(
    path: Path, scan: Scan, rule: Rule, signature: str, folder: Path | None, show: bool
) -> Part:
    """The kept part of a file, or a new one."""
    if folder is None:
        return _pass_over(path, scan, rule, show)
    kept = folder / f"{path.name}-{signature[:16]}.npz"
    with _alone(folder / f"{kept.name}.lock", show):
        part = _read_part(kept)
        if part is None:
            part = _pass_over(path, scan, rule, show)
            _write_part(kept, part)
    return part


def _pass_over(path: Path, scan: Scan, rule: Rule, show: bool) -> Part:
    total = path.stat().st_size // _MIB
    progress = Progress(f"index {path.name}", total=total, unit="MiB", show=show and total > 0)
    with open(path, "rb", buffering=_MIB) as source, progress:
        return _collect(_counted(scan(source), progress), rule, where=path.name)


def _counted(rows: Iterator[ScannedRow], progress: Progress) -> Iterator[ScannedRow]:
    for row in rows:
        if (num_mib := (row.offset + row.length) // _MIB - progress.done) > 0:
            progress.advance(num_mib)
        yield row


def _collect(rows: Iterator[ScannedRow], rule: Rule, where: str = "") -> Part:
    hashes, offsets, lengths = bytearray(), bytearray(), bytearray()
    num_faults = 0
    faults: list[str] = []
    for row in rows:
        compared = None if row.id is None else rule(row.id)
        if compared is None:
            num_faults += 1
            if len(faults) < NUM_SHOWN:
                fault = row.fault or f"id {row.id!r:.80} does not fit id and pattern"
                faults.append(f"{where} byte {row.offset}: {fault}" if where else fault)
            continue
        for array, number in (
            (hashes, hash_of(compared)),
            (offsets, row.offset),
            (lengths, row.length),
        ):
            array += number.to_bytes(8, "little")
    return Part(
        hashes=np.frombuffer(bytes(hashes), "<u8"),
        offsets=np.frombuffer(bytes(offsets), "<i8"),
        lengths=np.frombuffer(bytes(lengths), "<i8"),
        num_faults=num_faults,
        faults=tuple(faults),
    )


def _write_part(path: Path, part: Part) -> None:
    arrays = {name: getattr(part, name) for name in _ARRAYS}
    with replacing(path) as out:
        np.savez(out, num_faults=part.num_faults, faults=np.array(part.faults, "U"), **arrays)


def _read_part(path: Path) -> Part | None:
    """The part that was kept, None where there is none or it is not valid."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            arrays = {name: kept[name] for name in _ARRAYS}
            num_faults, faults = int(kept["num_faults"]), tuple(map(str, kept["faults"]))
    except Exception:  # numpy and zipfile raise nearly everything on broken bytes
        return None
    sizes = {(array.dtype.itemsize, array.ndim, len(array)) for array in arrays.values()}
    if len(sizes) != 1:
        return None
    return Part(**arrays, num_faults=num_faults, faults=faults)


@contextlib.contextmanager
def _alone(lock: Path, show: bool) -> Iterator[None]:
    """Waits until no other process that asked for `lock` is inside. A file system without locks
    makes everybody do the pass, with the same result."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if show:
                print(f"{lock.stem}: waiting for another worker's pass", flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            pass  # no locks here
        yield
    finally:
        os.close(descriptor)
