"""Is this a picture we can use? Looks at a file's bytes; reached from `stages.ingest.sample`.

What the file is called does not matter. Width and height are those of the stored pixels: an EXIF
orientation is not applied, as the boxes of the corpora are not either.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import ImageFile, JpegImagePlugin, PngImagePlugin

from stages.ingest.sources.source import PictureError

_OPENERS: dict[str, type[ImageFile.ImageFile]] = {
    # Opened by their own class, not by PIL.Image.open: that one stops a huge picture with an error
    # of its own before we could say how large it is, and would guess among dozens of formats.
    "jpg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
}
_SIGNATURES = (
    ("JPEG", 0, b"\xff\xd8\xff"),
    ("PNG", 0, b"\x89PNG\r\n\x1a\n"),
    ("GIF", 0, b"GIF8"),
    ("BMP", 0, b"BM"),
    ("TIFF", 0, b"II*\0"),
    ("TIFF", 0, b"MM\0*"),
    ("WebP", 8, b"WEBP"),
    ("AVIF", 4, b"ftypavif"),
    ("HEIC", 4, b"ftyphei"),
    ("JPEG 2000", 4, b"jP  \r\n"),
    ("a web page", 0, b"<!DOCTYPE"),
    ("a web page", 0, b"<html"),
)
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png"}


@dataclass(frozen=True, kw_only=True)
class PictureFacts:
    """What a file is: `extension` ("jpg" or "png", by its bytes), width and height in pixels."""

    extension: str
    width: int
    height: int


def inspect_picture(data: bytes, *, max_megapixels: float, min_side_px: int) -> PictureFacts:
    """Check that `data` is a whole JPEG or PNG of a fitting size, by decoding all of it.

    The size is read from the header first, so that a picture of 200 megapixels costs nothing.
    Raises PictureError with the reason.
    """
    extension = _EXTENSIONS.get(_format_of(data))
    if extension is None:
        raise PictureError(f"not JPEG or PNG: it is {_format_of(data)}")
    try:
        with _OPENERS[extension](io.BytesIO(data)) as image:
            width, height = image.size
            _check_size(width, height, max_megapixels=max_megapixels, min_side_px=min_side_px)
            if image.mode.startswith("I"):
                # Pillow clips these to white when it makes them RGB.
                raise PictureError("16-bit greyscale: make it 8-bit")
            image.load()
    except (PictureError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly every kind on damaged bytes
        raise PictureError(f"broken picture: {str(error) or type(error).__name__}") from None
    return PictureFacts(extension=extension, width=width, height=height)


def _format_of(data: bytes) -> str:
    if not data:
        return "an empty file"
    for name, offset, signature in _SIGNATURES:
        if data.startswith(signature, offset):
            return name
    return f"something else (it begins with {data[:8].hex(' ')})"


def _check_size(width: int, height: int, *, max_megapixels: float, min_side_px: int) -> None:
    megapixels = width * height / 1e6
    if megapixels > max_megapixels:
        raise PictureError(
            f"too large: {megapixels:.1f} megapixels; ingest.max_megapixels is {max_megapixels:g}"
        )
    if min(width, height) < min_side_px:
        raise PictureError(
            f"too small: {width} x {height} pixels; ingest.min_side_px is {min_side_px}"
        )
