"""Turns pictures upright, as their EXIF orientation says."""

from __future__ import annotations

from PIL import Image

from sharding.format.exif_orientation import exif_orientation, picture_orientation

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_OTHER_ORIENTATIONS = ("xmp", "XML:com.adobe.xmp", "Raw profile type exif")
"""Where else Pillow looks for an orientation."""


def upright(picture: Image.Image, data: bytes) -> Image.Image:
    """A picture decoded from `data`, perhaps smaller, turned as its EXIF orientation says."""
    return turned(picture, picture_orientation(data))


def turned(picture: Image.Image, orientation: int) -> Image.Image:
    """A stored picture turned as EXIF orientation 1 to 8 says (Exif 2.32, 4.6.4 A, tag 274)."""
    turn = _TURNS.get(orientation)
    return picture if turn is None else picture.transpose(turn)


def orientation_of(picture: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, of an open picture, as `picture_orientation` reads it from its
    bytes. Pillow would also turn by XMP and by ImageMagick's texts, as browsers do not."""
    exif = picture.info.get("exif")
    if isinstance(exif, bytes):
        return exif_orientation(exif)
    if any(name in picture.info for name in _OTHER_ORIENTATIONS):
        return 1
    return picture.getexif().get(0x0112, 1)
