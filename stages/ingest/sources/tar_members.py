"""What is in a tar, and where it is damaged.

Only headers are read, by `sharding.format.tar_scan`, which trusts none of them and bounds what they
may ask for.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sharding.format.schema import ShardError
from sharding.format.tar_scan import scan
from sharding.reading.sample_reader import OpenTar


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
            return os.pread(file.fileno(), self.num_bytes, self.offset)


def list_members(tar: Path) -> tuple[list[Member], list[str], str]:
    """(files in `tar` that are whole, names of links, damage), damage "" or what is wrong from
    which byte on.

    Links, symbolic and hard, are left out, as stock webdataset does. What is no damage but refused
    all the same (devices, absolute paths, names that cannot be printed, too many members) ends the
    list as damage does.
    """
    members: list[Member] = []
    links: list[str] = []
    try:
        source = OpenTar(tar)
        for member in scan(source.read, source.num_bytes, on_link=links.append):
            members.append(
                Member(tar=tar, name=member.name, offset=member.offset, num_bytes=member.num_bytes)
            )
    except ShardError as error:
        return members, links, str(error).removeprefix(f"{tar}: ")
    return members, links, ""
