"""Decodes and validates pictures, by one rule for every stage.

A valid picture is a complete JPEG, PNG or WebP of a size within the limits. It is upright: the EXIF
orientation that a camera noted is applied, so that width, height and boxes are those of the picture
that people see.
"""

from __future__ import annotations

import io
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from boxless.errors import BoxlessError
from sharding.format.exif_orientation import picture_orientation
from sharding.user_paths import expand_user
from stages.exif_orientation import orientation_of, turned, upright
from stages.packed_files import read_or_unpack

if TYPE_CHECKING:  # ingest needs no torch, whose import takes a worker seconds
    import torch

MAX_MEGAPIXELS = 89.0
"""Pillow warns above this and later refuses (PIL.Image.MAX_IMAGE_PIXELS)."""
_OPENERS: dict[str, type[ImageFile.ImageFile]] = {
    # Opened by their own class, not by PIL.Image.open: that one stops a huge picture with an error
    # of its own before we could say how large it is, and would guess among dozens of formats.
    "jpg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
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
_LONGEST_SIGNATURE = 16
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WebP": "webp"}
_REST = b"rest"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", _REST)


class PictureError(BoxlessError):
    """One picture cannot be used. The message is the reason, as "kind: detail"."""


@dataclass(frozen=True, kw_only=True)
class PictureFacts:
    """What a file is: `extension` ("jpg", "png" or "webp", by its bytes), width and height of the
    upright picture in pixels, and the EXIF orientation (1 to 8) that makes it upright."""

    extension: str
    width: int
    height: int
    orientation: int


def inspect_picture(
    data: bytes, *, max_megapixels: float = MAX_MEGAPIXELS, min_side_px: int = 1
) -> PictureFacts:
    """Check that `data` is a whole picture of a fitting size, by decoding all of it.

    Raises PictureError with the reason.
    """
    picture = open_picture(data, max_megapixels=max_megapixels, min_side_px=min_side_px)
    return PictureFacts(
        extension=_EXTENSIONS[_format_of(data)],
        width=picture.width,
        height=picture.height,
        orientation=picture_orientation(data),
    )


def open_picture(
    data: bytes, *, max_megapixels: float = MAX_MEGAPIXELS, min_side_px: int = 1
) -> Image.Image:
    """The picture, decoded and upright, in RGB.

    The size is read from the header first, so that a picture of 200 megapixels costs nothing.
    Raises PictureError with the reason.
    """
    extension = _EXTENSIONS.get(_format_of(data))
    if extension is None:
        raise PictureError(f"not JPEG, PNG or WebP: it is {_format_of(data)}")
    try:
        with _OPENERS[extension](io.BytesIO(pixels_alone(data))) as image:
            _check_size(*image.size, max_megapixels=max_megapixels, min_side_px=min_side_px)
            _check_mode(image)
            image.load()
            rgb = image.convert("RGB")
    except (PictureError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly every kind on damaged bytes
        raise PictureError(f"broken picture: {str(error) or type(error).__name__}") from None
    return upright(rgb, data)


def upright_picture(
    picture: str | Path | bytes | Image.Image | np.ndarray | torch.Tensor,
) -> Image.Image:
    """An upright RGB image from a file, its bytes, an open image, or pixels of uint8
    ([H, W, 3], [3, H, W] or [H, W]).

    Raises PictureError for what is no picture, naming its file, OSError for a file that cannot be
    read.
    """
    if isinstance(picture, (str, Path)):
        if str(picture).startswith(("http:/", "https:/")) or picture == "":
            raise PictureError(f"got {str(picture)!r}, expected a file; download a URL first")
        path = expand_user(picture)
        try:
            return open_picture(read_picture_file(path))
        except PictureError as error:
            raise PictureError(f"{path}: {error}") from None
    if isinstance(picture, bytes):
        return open_picture(picture)
    if isinstance(picture, Image.Image):
        _check_size(*picture.size, max_megapixels=MAX_MEGAPIXELS, min_side_px=1)
        _check_mode(picture)
        try:
            orientation = orientation_of(picture)
            return turned(picture.convert("RGB"), orientation)
        except Exception as error:  # as in open_picture
            raise PictureError(f"broken picture: {str(error) or type(error).__name__}") from None
    return _of_pixels(picture)


def read_picture_file(path: Path) -> bytes:
    """The bytes of a file, or of one in a tar or in shards (stages.packed_files). PictureError
    for a pipe or a device, from which reading would wait or never end; OSError for a file that
    cannot be read."""
    return read_or_unpack(path, _read_regular_file)


def _read_regular_file(path: Path) -> bytes:
    with open(path, "rb", opener=_open_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise PictureError("not a file: it is a pipe or a device")
        return file.read()


def _open_without_waiting(path: str, flags: int) -> int:
    """A pipe that somebody named as a picture would wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def file_fault(path: Path) -> str | None:
    """What keeps a file from being a picture, by its first bytes; None where they are those of a
    JPEG, PNG or WebP, whatever its name ends in. That all of it is valid shows only when it is
    decoded."""
    try:
        kind = _format_of(read_or_unpack(path, _first_bytes, most=_LONGEST_SIGNATURE))
    except (FileNotFoundError, NotADirectoryError):
        return "not there"
    except OSError as error:
        return f"not readable ({error.strerror})"
    except ValueError as error:  # a name that no file can have, or a damaged tar
        return f"not readable ({error})"
    return None if kind in _EXTENSIONS else f"not JPEG, PNG or WebP: it is {kind}"


def _first_bytes(path: Path) -> bytes:
    with open(path, "rb", opener=_open_without_waiting) as file:
        return file.read(_LONGEST_SIGNATURE)


def _of_pixels(pixels: np.ndarray | torch.Tensor) -> Image.Image:
    array = pixels if isinstance(pixels, np.ndarray) else pixels.detach().cpu().numpy()
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = array.transpose(1, 2, 0)
    is_grey = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)
    if array.dtype != np.uint8 or not (is_grey or (array.ndim == 3 and array.shape[2] == 3)):
        raise PictureError(
            f"not pixels: got {array.dtype} {tuple(array.shape)}, expected uint8 (0 to 255) "
            "[H, W, 3], [3, H, W] or [H, W]"
        )
    if not array.size:
        raise PictureError(f"too small: got pixels of shape {tuple(array.shape)}")
    height, width = array.shape[:2]
    _check_size(width, height, max_megapixels=MAX_MEGAPIXELS, min_side_px=1)
    flat = array.reshape(height, width) if is_grey else array
    return Image.fromarray(np.ascontiguousarray(flat)).convert("RGB")


def _check_mode(picture: Image.Image) -> None:
    """PictureError for what Pillow would clip to white when it makes it RGB."""
    if picture.mode.startswith("I"):
        raise PictureError("16-bit greyscale: make it 8-bit")
    if picture.mode == "F":
        raise PictureError("greyscale of floating point numbers: make it 8-bit")


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


def pixels_alone(data: bytes) -> bytes:
    """A PNG with only the chunks that its pixels are made of; other bytes as they are.

    Pillow refuses what others say at length, as generators of pictures (a workflow, XMP) and
    printers (a colour profile) do, or say wrongly: times, gamma, the frames of an animation."""
    if _format_of(data) != "PNG":
        return data
    chunks = [(kind, data[start:end]) for kind, start, end in _png_chunks(data)]
    if all(kind in _PNG_PIXELS for kind, _ in chunks):
        return data
    return b"".join([data[:8], *(piece for kind, piece in chunks if kind in _PNG_PIXELS)])


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, first byte, end) of each chunk; what is cut short or follows IEND comes as one."""
    at = 8
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], min(at + 12 + length, len(data))
        yield kind, at, end
        at = end
        if kind == b"IEND":
            break
    if at < len(data):
        yield _REST, at, len(data)
