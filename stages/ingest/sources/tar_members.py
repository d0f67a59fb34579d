"""Lists the members of a tar, and where it is damaged.

Only headers are read, by `sharding.format.tar_scan`, which trusts none of them and bounds what they
may ask for.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, kw_only=True)
class Members:
    """What a tar holds: the files that are whole; what was passed over: names of links, symbolic
    and hard, and of devices and fifos, as stock webdataset does, and what is wrong with names that
    are refused (absolute paths, names that cannot be printed); damage, "" or what is wrong from
    which byte on."""

    files: list[Member]
    links: list[str]
    devices: list[str]
    bad_names: list[str]
    damage: str = ""

    def of_kind(self, kind: str) -> list[str]:
        """The list for what a tar has in the place of a file, in `tar_scan`'s words."""
        return self.links if kind.endswith("link") else self.devices


def list_members(tar: Path) -> Members:
    """What is in `tar`. What is no damage but refused all the same (sparse files, too many
    members) ends the list as damage does."""
    found = Members(files=[], links=[], devices=[], bad_names=[])
    try:
        source = OpenTar(tar)
        headers = scan(
            source.read,
            source.num_bytes,
            on_no_file=lambda name, kind: found.of_kind(kind).append(name),
            on_bad_name=found.bad_names.append,
        )
        for member in headers:
            found.files.append(
                Member(tar=tar, name=member.name, offset=member.offset, num_bytes=member.num_bytes)
            )
    except ShardError as error:
        return replace(found, damage=str(error).removeprefix(f"{tar}: "))
    return found
