"""Width and height of a JPEG, PNG or WebP, from its first bytes, without decoding anything.

A picture from an unknown source is looked at in a few places of a few bytes, so that none costs
more than another, however large it would be when decoded (a decompression bomb).

Layouts: ITU T.81, annex B (JPEG); PNG, 3rd edition, section 11.2.1; RFC 9649 and RFC 6386, 9.1
(WebP). Sizes are of the upright picture: an EXIF orientation is applied.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from sharding.format.schema import ShardError

# Pillow's own bound (PIL.Image.MAX_IMAGE_PIXELS): 256 MiB as RGB.
MAX_PIXELS = (1 << 28) // 3
MAX_JPEG_SEGMENTS = 4096
MAX_CHUNKS = 4096  # of a PNG or WebP
# As decoders do: whatever is no marker is skipped between segments, and so are fill bytes (FF).
_MARKER = re.compile(rb"\xff+[^\xff]", re.DOTALL)
# Markers of frame headers, which hold the size: C0 to CF but for DHT, JPG and DAC.
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = {0x00, 0x01, *range(0xD0, 0xD9)}  # no length follows these
_APP1 = 0xE1
_ORIENTATION, _SHORT = 274, 3  # a tag of TIFF and the type of its value
_STOPS = {0xD9, 0xDA}  # the end, and the scan, before which the size must have come


def picture_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels of the picture in `data`, upright.

    Raises ShardError unless it begins as a JPEG, PNG or WebP with at least one pixel and at most
    MAX_PIXELS. Whether the rest can be decoded is not looked at.
    """
    try:
        size = _size(data)
    except (struct.error, IndexError) as error:
        raise ShardError(f"picture: got {len(data)} bytes, expected a whole header") from error
    if size is None:
        raise ShardError(f"picture: got {data[:8]!r}, expected the start of a JPEG, PNG or WebP")
    width, height = size
    if not 0 < width * height <= MAX_PIXELS:
        raise ShardError(
            f"picture: got {width} x {height} pixels, expected at least 1 and at most {MAX_PIXELS}"
        )
    return upright_size(size, data)


def upright_size(size: tuple[int, int], data: bytes) -> tuple[int, int]:
    """(width, height) of the upright picture, from those that are stored in `data`."""
    width, height = size
    return size if picture_orientation(data) < 5 else (height, width)


def _size(data: bytes) -> tuple[int, int] | None:
    """The size that a header says; None for other formats, struct.error where it is cut."""
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg_size(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR":
        return struct.unpack_from(">II", data, 16)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp_size(data)
    return None


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """The size in the first frame header: the segments before it are jumped over."""
    for marker, at in _jpeg_segments(data):
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return width, height
    raise ShardError("picture: got a JPEG without a frame header, expected one with its size")


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """The size of a lossy (VP8), lossless (VP8L) or extended (VP8X) WebP."""
    if data[12:16] == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if data[12:16] == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if data[12:16] == b"VP8X" and len(data) >= 30:
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    return None


def picture_orientation(data: bytes) -> int:
    """The EXIF orientation, 1 to 8, that a picture's header notes; 1 where it notes none, or its
    EXIF is damaged. At 5 to 8 the upright picture has the stored width as its height.

    Layouts: Exif 2.32, 4.7.2 (JPEG's APP1); PNG, 3rd edition, 11.3.2.6 (eXIf); RFC 9649 (WebP).
    """
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
    for marker, at in _jpeg_segments(data):
        if marker == _APP1 and data[at + 2 : at + 8] == b"Exif\0\0":
            (length,) = struct.unpack_from(">H", data, at)
            return data[at + 8 : at + length]
    return b""


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """The marker of each segment with a length before the pixels, and where that length stands.
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
