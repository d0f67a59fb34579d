"""Width and height of a JPEG, PNG or WebP, from its first bytes, without decoding anything.

Reached by sharding.tools.index. A picture from anybody is looked at in a few places of a few bytes, so
that none costs more than another, however large it would be when decoded (a decompression bomb).

Layouts: ITU T.81, annex B (JPEG); PNG, 3rd edition, section 11.2.1; RFC 9649 and RFC 6386, 9.1
(WebP). EXIF orientation is left aside: boxes are in the stored pixels.
"""

from __future__ import annotations

import re
import struct

from sharding.format.schema import ShardError

# Pillow's own bound (PIL.Image.MAX_IMAGE_PIXELS): 256 MiB as RGB.
MAX_PIXELS = (1 << 28) // 3
MAX_JPEG_SEGMENTS = 4096
# As decoders do: whatever is no marker is skipped between segments, and so are fill bytes (FF).
_MARKER = re.compile(rb"\xff+[^\xff]", re.DOTALL)
# Markers of frame headers, which hold the size: C0 to CF but for DHT, JPG and DAC.
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = {0x00, 0x01, *range(0xD0, 0xD9)}  # no length follows these
_STOPS = {0xD9, 0xDA}  # the end, and the scan, before which the size must have come


def picture_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels of the picture in `data`.

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
    return size


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
    at = 2
    for _ in range(MAX_JPEG_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None or data[found.end() - 1] in _STOPS:
            break
        marker, at = data[found.end() - 1], found.end()
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return width, height
        if marker not in _ALONE:
            at += struct.unpack_from(">H", data, at)[0]
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
