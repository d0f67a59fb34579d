"""Width and height of a JPEG, PNG or WebP, from its first bytes, without decoding anything.

A picture from an unknown source is read in a few places of a few bytes, so that none costs
more than another, however large it would be when decoded (a decompression bomb).

Layouts: ITU T.81, annex B (JPEG); PNG, 3rd edition, section 11.2.1; RFC 9649 and RFC 6386, 9.1
(WebP). Sizes are of the upright picture: an EXIF orientation is applied.
"""

from __future__ import annotations

import struct

from sharding.format.exif_orientation import jpeg_segments, picture_orientation
from sharding.format.schema import ShardError

# Pillow's own bound (PIL.Image.MAX_IMAGE_PIXELS): 256 MiB as RGB.
MAX_PIXELS = (1 << 28) // 3
# Markers of frame headers, which hold the size: C0 to CF but for DHT, JPG and DAC.
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def picture_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels of the picture in `data`, upright.

    Raises ShardError unless it begins as a JPEG, PNG or WebP with at least one pixel and at most
    MAX_PIXELS. Whether the rest can be decoded is not checked.
    """
    try:
        size = _size(data)
    except (struct.error, IndexError) as error:
        raise ShardError(f"picture: got {len(data)} bytes, expected a complete header") from error
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
    for marker, at in jpeg_segments(data):
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
