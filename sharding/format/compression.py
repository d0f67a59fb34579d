"""Recognises compressed files by their first bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Compression:
    """A way of compressing files: its name, how such a file begins, and the command that unpacks
    one."""

    name: str
    signature: bytes
    unpack_command: str


COMPRESSIONS = (
    Compression("gzip", b"\x1f\x8b", "gzip -d"),
    Compression("bzip2", b"BZh", "bzip2 -d"),
    Compression("xz", b"\xfd7zXZ\0", "xz -d"),
    Compression("zstd", b"\x28\xb5\x2f\xfd", "zstd -d"),
    Compression("zip", b"PK\x03\x04", "unzip"),
)


def compression_of(data: bytes) -> Compression | None:
    """How the file that begins with `data` is compressed; None for a plain file."""
    return next((kind for kind in COMPRESSIONS if data.startswith(kind.signature)), None)
