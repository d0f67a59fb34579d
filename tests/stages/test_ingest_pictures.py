"""Which bytes are a picture we take; oracle: files made with Pillow, whole and then damaged."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
from ingest_corpora import encoded, png_header
from PIL import Image

from stages.ingest.pictures import PictureFacts, inspect_picture
from stages.ingest.sources.source import PictureError

JPEG, PNG = encoded("JPEG"), encoded("PNG")


def inspect(data: bytes) -> PictureFacts:
    return inspect_picture(data, max_megapixels=50, min_side_px=2)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_of_every_colour_space(mode: str) -> None:
    facts = inspect(encoded("JPEG", width=50, height=20, mode=mode))
    assert facts == PictureFacts(extension="jpg", width=50, height=20)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_png_of_every_mode(mode: str) -> None:
    facts = inspect(encoded("PNG", width=50, height=20, mode=mode))
    assert facts == PictureFacts(extension="png", width=50, height=20)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "not JPEG or PNG: it is an empty file"),
        (b"hello world", "not JPEG or PNG: it is something else"),
        (b"<!DOCTYPE html><html>404</html>", "not JPEG or PNG: it is a web page"),
        (encoded("WEBP"), "not JPEG or PNG: it is WebP"),
        (encoded("GIF"), "not JPEG or PNG: it is GIF"),
        (encoded("BMP"), "not JPEG or PNG: it is BMP"),
        (encoded("TIFF"), "not JPEG or PNG: it is TIFF"),
        (JPEG[: len(JPEG) // 2], "broken picture: .*truncated"),
        (PNG[: len(PNG) // 2], "broken picture: .*"),
        (JPEG[:3], "broken picture: .*"),
        (PNG[:8], "broken picture: .*"),
        (b"\xff\xd8\xff" + bytes(500), "broken picture: .*"),
        (encoded("PNG", width=1, height=1), "too small: 1 x 1 pixels; ingest.min_side_px is 2"),
        (encoded("JPEG", width=90, height=1), "too small: 90 x 1 pixels"),
        (
            png_header(20_000, 10_000),
            "too large: 200.0 megapixels; ingest.max_megapixels is 50",
        ),
    ],
)
def test_what_is_refused_and_why(data: bytes, told: str) -> None:
    with pytest.raises(PictureError, match=f"^{told}"):
        inspect(data)


def test_a_whole_picture_of_200_megapixels_is_refused_without_decoding_it() -> None:
    out = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(out, "PNG")
    tracemalloc.start()
    with pytest.raises(PictureError, match="200.0 megapixels"):
        inspect(out.getvalue())
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_every_cut_of_a_picture_is_refused() -> None:
    """A prefix is never taken, unless only the end mark is missing (JPEG 2 bytes, PNG 12)."""
    for data, tail in ((JPEG, 2), (PNG, 12)):
        for end in range(1, len(data) - tail, 37):
            with pytest.raises(PictureError):
                inspect(data[:end])


def test_flipped_bits_of_a_png_are_found() -> None:
    """Every byte of the pixel data is under a check sum of its compression."""
    for place in range(40, len(PNG) - 12, 97):
        damaged = bytearray(PNG)
        damaged[place] ^= 0x10
        with pytest.raises(PictureError, match="broken picture"):
            inspect(bytes(damaged))


def test_greyscale_of_16_bits_is_refused() -> None:
    """Pillow would turn all but the darkest 256 of 65536 values to white."""
    out = io.BytesIO()
    Image.fromarray(np.full((20, 20), 40_000, dtype=np.uint16)).save(out, "PNG")
    with pytest.raises(PictureError, match="16-bit greyscale"):
        inspect(out.getvalue())
