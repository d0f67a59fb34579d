"""What is in a tar, and where it is damaged; reached from `stages.ingest.webdataset`.

Only headers are read. The standard library's reader takes a destroyed header for the end of the tar
and says nothing; here every end that is not the end mark is told.
"""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

PIECE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file in a tar: its `name`, and where its bytes are."""

    tar: Path
    name: str
    offset: int
    num_bytes: int

    def read(self) -> bytes:
        """The bytes; OSError where the tar cannot be read any more."""
        with open(self.tar, "rb") as file:
            file.seek(self.offset)
            return file.read(self.num_bytes)


def list_members(tar: Path) -> tuple[list[Member], str]:
    """(files in `tar` that are whole, damage), damage "" or what is wrong from which byte on."""
    members: list[Member] = []
    try:
        with open(tar, "rb") as file:
            end_bytes = os.fstat(file.fileno()).st_size
            if end_bytes == 0:
                return members, "it is empty, byte 0"
            try:
                with tarfile.open(fileobj=file, mode="r:") as archive:
                    damage = _walk(archive, members, tar, end_bytes)
                    return members, damage or _check_end(file, archive.offset)
            except tarfile.ReadError as error:
                return members, f"no header at byte {_end_of(members)} ({error})"
    except OSError as error:
        return members, f"cannot be read ({error.strerror}), byte {_end_of(members)}"


def _walk(archive: tarfile.TarFile, members: list[Member], tar: Path, end_bytes: int) -> str:
    """Collect the members up to the end or the first that runs over it."""
    while (info := archive.next()) is not None:
        if info.size < 0:  # which would send the reader back, in circles
            return f"no header at byte {info.offset} (a negative length)"
        if info.isreg() and info.offset_data + info.size > end_bytes:
            return f"ends at byte {end_bytes}, inside of {info.name} from byte {info.offset}"
        if info.isreg():
            member = Member(
                tar=tar, name=info.name, offset=info.offset_data, num_bytes=info.size
            )
            members.append(member)
    return ""


def _check_end(file: BinaryIO, offset: int) -> str:
    """After the last member comes the end mark, a block of zeros, and nothing but more zeros."""
    file.seek(offset)
    mark = file.read(tarfile.BLOCKSIZE)
    if len(mark) < tarfile.BLOCKSIZE:
        return f"ends at byte {offset + len(mark)} without the end mark"
    if any(mark):
        return f"no header at byte {offset}"
    position = offset + tarfile.BLOCKSIZE
    while piece := file.read(PIECE_BYTES):
        if any(piece):
            return f"more after the end mark at byte {position + _first_set(piece)}"
        position += len(piece)
    return ""


def _first_set(piece: bytes) -> int:
    return len(piece) - len(piece.lstrip(b"\0"))


def _end_of(members: list[Member]) -> int:
    """Where the header after the last whole member must be."""
    if not members:
        return 0
    end = members[-1].offset + members[-1].num_bytes
    return -(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
