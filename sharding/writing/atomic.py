"""Writes files atomically: temporary name, fsync, rename, fsync of the folder.

A temporary file is called `.NAME.PID-RANDOM.tmp`, lies in
the folder of the file it will become, and is locked (flock) by its writer for as long as that
writer lives. So a killed writer's temporary file is known by its free lock, on this machine or on
another one of a shared file system, and a living writer's is never taken from it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

BUFFER_BYTES = 1 << 20
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a disk says that is full, or whose quota or limit of a file is used up."""
TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9]+-[0-9a-f]{16}\.tmp")


class TempFileRemoved(FileNotFoundError):
    """A temporary file was gone before its writer was done: others took the writer for dead."""


class NewFile:
    """A locked temporary file that becomes `path` by `rename`; a context, which removes it if it
    was not renamed. Missing folders are made.

    `out` is open for writing. Raises OSError when the disk says so.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._temp, self.out = _create_locked(path)
        self._is_renamed = False

    def sync(self) -> None:
        """Bring what was written to the disk."""
        with naming(self.path):
            self.out.flush()
            os.fsync(self.out.fileno())

    def rename(self) -> None:
        """Give the file its name. Still open, as the lock is held until the temporary name is gone.

        TempFileRemoved when somebody removed the temporary file meanwhile (remove_temporary, or
        remove_stale on another machine whose locks do not reach here)."""
        _rename(self._temp, self.path)
        self._is_renamed = True
        sync_folder(self.path.parent)

    def is_in_place(self) -> bool:
        """Whether the file at `path` is this one."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.out.fileno()))
        except FileNotFoundError:
            return False

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        cause = disk_error(error)
        if cause is not None and cause.filename is None and cause.errno in NO_ROOM:
            cause.filename = str(self.path)  # a write knows only its descriptor
        try:
            if not self._is_renamed:
                self._temp.unlink(missing_ok=True)
        finally:
            _close(self.out)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives an OSError of the block the name of the file that is written there: a write and fsync
    know only its descriptor."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def disk_error(error: BaseException | None) -> OSError | None:
    """The disk's error behind one of writing: PyTorch raises an error of its own, about the rest of
    its file, after it. None where there is none with a number."""
    cause = error.__context__ if isinstance(error, RuntimeError) else error
    return cause if isinstance(cause, OSError) and cause.errno is not None else None


def _close(out: BinaryIO) -> None:
    """Close a file whose data are synced or given up: what is still buffered is no loss."""
    with contextlib.suppress(OSError):
        out.close()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file open for writing that becomes `path` when the block ends well.

    If the block raises, whatever it raises, the temporary file is removed and `path` stays as it
    was. See NewFile for what is raised.
    """
    with NewFile(path) as new:
        yield new.out
        new.sync()
        new.rename()


def _create_locked(path: Path) -> tuple[Path, BinaryIO]:
    while True:
        temp = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(8)}.tmp")
        out = open(temp, "xb", buffering=BUFFER_BYTES)
        # A file system without locks refuses here and in remove_stale alike: nothing is removed.
        with contextlib.suppress(OSError):
            fcntl.flock(out, fcntl.LOCK_EX)
        # remove_stale may have come between creation and lock; then this file has no name left.
        if os.fstat(out.fileno()).st_nlink > 0:
            return temp, out
        out.close()


def _rename(temp: Path, path: Path) -> None:
    try:
        os.replace(temp, path)
    except FileNotFoundError as error:
        raise TempFileRemoved(
            f"{path}: got no {temp.name} any more, expected to rename it: another worker took this "
            "one for dead and removed it; nothing is lost, what it wrote is written again"
        ) from error


def remove_stale(folder: Path, names: Collection[str]) -> None:
    """Removes what killed writers of the files `names` left in `folder`; the living keep theirs."""
    if not folder.is_dir():
        return
    for temp in folder.iterdir():
        match = TEMPORARY.fullmatch(temp.name)
        if match is None or match["name"] not in names:
            continue
        # Errors: locked by a living writer, or renamed or removed by somebody since the listing.
        with contextlib.suppress(OSError), open(temp, "rb+") as left:
            fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temp.unlink()


def remove_temporary(folder: Path, names: Collection[str]) -> None:
    """Removes every temporary file of the files `names` in `folder`, locked or not.

    For when all of them are finished: a process still writing one gets TempFileRemoved at its end.
    """
    for temp in folder.iterdir():
        match = TEMPORARY.fullmatch(temp.name)
        if match is not None and match["name"] in names:
            temp.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes renames and removals in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with naming(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, whole or not at all."""
    with replacing(path) as out:
        out.write(data)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, obj: Any) -> None:
    """Writes `obj` to `path` as JSON that people read: sorted keys, indent 1, newline at the end.

    Raises ValueError for NaN and infinities, which JSON does not know.
    """
    text = json.dumps(obj, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def canonical_json(obj: Any) -> bytes:
    """The one UTF-8 spelling of `obj` in JSON: sorted keys, no spaces, no NaN (ValueError)."""
    text = json.dumps(
        obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")


def sha256_of(obj: Any) -> str:
    """SHA-256, in hex, of the canonical JSON of `obj`."""
    return hashlib.sha256(canonical_json(obj)).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256, in hex, of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as source:
        while piece := source.read(BUFFER_BYTES):
            digest.update(piece)
    return digest.hexdigest()
