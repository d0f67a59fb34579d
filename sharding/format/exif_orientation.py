"""The EXIF orientation of a JPEG, PNG or WebP, from its bytes, without decoding anything.

Layouts: Exif 2.32, 4.7.2 (JPEG's APP1); PNG, 3rd edition, 11.3.2.6 (eXIf); RFC 9649 (WebP).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from sharding.format.schema import ShardError

MAX_JPEG_SEGMENTS = 4096
MAX_CHUNKS = 4096  # of a PNG or WebP
# As decoders do: whatever is no marker is skipped between segments, and so are fill bytes (FF).
_MARKER = re.compile(rb"\xff+[^\xff]", re.DOTALL)
_ALONE = {0x00, 0x01, *range(0xD0, 0xD9)}  # no length follows these
_APP1 = 0xE1
_ORIENTATION, _SHORT = 274, 3  # a tag of TIFF and the type of its value
_STOPS = {0xD9, 0xDA}  # the end, and the scan, before which the size must have come


def picture_orientation(data: bytes) -> int:
    """The EXIF orientation, 1 to 8, that a picture's header notes; 1 where it notes none, or its
    EXIF is damaged. At 5 to 8 the upright picture has the stored width as its height."""
    try:
        return exif_orientation(_exif(data))
    except (struct.error, IndexError, ShardError):
        return 1


def exif_orientation(block: bytes) -> int:
    """The orientation, 1 to 8, that EXIF notes, with or without the mark that JPEGs begin it with;
    1 where it notes none or is damaged."""
    try:
        return _tiff_orientation(block.removeprefix(b"Exif\0\0"))
    except (struct.error, IndexError):
        return 1


def _exif(data: bytes) -> bytes:
    """The TIFF block that holds a picture's EXIF, b"" where there is none."""
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg_exif(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _chunk(data, b"eXIf", start=8, order=">", head_bytes=8, extra_bytes=4)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        block = _chunk(data, b"EXIF", start=12, order="<", head_bytes=8, extra_bytes=0)
        return block.removeprefix(b"Exif\0\0")
    return b""


def _jpeg_exif(data: bytes) -> bytes:
    for marker, at in jpeg_segments(data):
        if marker == _APP1 and data[at + 2 : at + 8] == b"Exif\0\0":
            (length,) = struct.unpack_from(">H", data, at)
            return data[at + 8 : at + length]
    return b""


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """The marker of each segment with a length before the pixels, and where that length is.
    struct.error for a segment that ends with the data."""
    at = 2
    for _ in range(MAX_JPEG_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None or data[found.end() - 1] in _STOPS:
            return
        marker, at = data[found.end() - 1], found.end()
        if marker not in _ALONE:
            yield marker, at
            at += struct.unpack_from(">H", data, at)[0]


def _chunk(
    data: bytes, wanted: bytes, *, start: int, order: str, head_bytes: int, extra_bytes: int
) -> bytes:
    """The content of the first chunk of a type, in PNG (length, type, content, CRC-32) or in RIFF
    (type, length, content, padded to even)."""
    at = start
    for _ in range(MAX_CHUNKS):
        if at + head_bytes > len(data):
            break
        first, second = data[at : at + 4], data[at + 4 : at + 8]
        kind, length = (second, first) if order == ">" else (first, second)
        (num_bytes,) = struct.unpack(f"{order}I", length)
        if kind == wanted:
            return data[at + head_bytes : at + head_bytes + num_bytes]
        padding = num_bytes % 2 if order == "<" else 0
        at += head_bytes + num_bytes + padding + extra_bytes
    return b""


def _tiff_orientation(block: bytes) -> int:
    """Tag 274 of the first directory of a TIFF block (TIFF 6.0, section 2); 1 where it is not
    there."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return 1
    (at,) = struct.unpack_from(f"{order}I", block, 4)
    (num_entries,) = struct.unpack_from(f"{order}H", block, at)
    for entry in range(num_entries):
        tag, kind, count, value = struct.unpack_from(f"{order}HHIH", block, at + 2 + 12 * entry)
        if tag == _ORIENTATION:
            return value if kind == _SHORT and count == 1 and 1 <= value <= 8 else 1
    return 1
