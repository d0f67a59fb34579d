"""Which bytes are a picture we take; oracle: files made with Pillow, whole and then damaged."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from ingest_corpora import encoded, png_header
from PIL import Image, ImageOps, PngImagePlugin

from pipeline.pages.thumbnails import thumbnail
from sharding.format.image_size import picture_size
from sharding.format.schema import Sample
from stages.distill.inference.decode import decode
from stages.picture import (
    PictureError,
    PictureFacts,
    inspect_picture,
    open_picture,
    upright_picture,
)
from stages.student.vision.image_transforms import load_picture

JPEG, PNG = encoded("JPEG"), encoded("PNG")
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description '
    'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></x:xmpmeta>'
)


def inspect(data: bytes) -> PictureFacts:
    return inspect_picture(data, max_megapixels=50, min_side_px=2)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_of_every_colour_space(mode: str) -> None:
    facts = inspect(encoded("JPEG", width=50, height=20, mode=mode))
    assert facts == PictureFacts(extension="jpg", width=50, height=20, orientation=1)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_png_of_every_mode(mode: str) -> None:
    facts = inspect(encoded("PNG", width=50, height=20, mode=mode))
    assert facts == PictureFacts(extension="png", width=50, height=20, orientation=1)


@pytest.mark.parametrize(
    ("data", "reported"),
    [
        (b"", "not JPEG, PNG or WebP: it is an empty file"),
        (b"hello world", "not JPEG, PNG or WebP: it is something else"),
        (b"<!DOCTYPE html><html>404</html>", "not JPEG, PNG or WebP: it is a web page"),
        (encoded("GIF"), "not JPEG, PNG or WebP: it is GIF"),
        (encoded("BMP"), "not JPEG, PNG or WebP: it is BMP"),
        (encoded("TIFF"), "not JPEG, PNG or WebP: it is TIFF"),
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
def test_what_is_refused_and_why(data: bytes, reported: str) -> None:
    with pytest.raises(PictureError, match=f"^{reported}"):
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


def stored(orientation: int, form: str) -> bytes:
    """A picture of two colours, 40 x 30 stored pixels, with an EXIF orientation."""
    picture = Image.new("RGB", (40, 30), (250, 0, 0))
    picture.paste((0, 0, 250), (0, 0, 12, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    picture.save(out, form, exif=exif.tobytes(), **({} if form == "PNG" else {"quality": 95}))
    return out.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright_everywhere(orientation: int, form: str) -> None:
    """Oracle: Pillow's own exif_transpose; header, ingest, teacher and student say the same."""
    data = stored(orientation, form)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    facts = inspect(data)
    assert (facts.width, facts.height) == expected.size == picture_size(data)
    assert facts.orientation == orientation
    info = {"captions": ["x"], "width": facts.width, "height": facts.height}
    sample = Sample(key="p", image=data, extension=facts.extension, info=info)
    assert torch.equal(decode(sample), torch.from_numpy(np.array(expected)))
    shorter = min(expected.size)
    seen = load_picture(data, shorter_px=shorter, longer_px=max(expected.size))
    assert np.array_equal(seen, np.array(expected))


def test_an_orientation_that_cannot_be_read_is_none() -> None:
    """No damage to the EXIF block makes a whole picture unusable."""
    data = stored(6, "JPEG")
    at = data.index(b"Exif")
    for place in range(at, at + 32):
        damaged = bytearray(data)
        damaged[place] ^= 0xFF
        assert open_picture(bytes(damaged)).size in ((40, 30), (30, 40))


def _noted_elsewhere(kind: str, place: str) -> bytes:
    """A picture of 40 x 24 whose orientation, 6, stands in XMP or in ImageMagick's text."""
    exif, text, options = Image.Exif(), PngImagePlugin.PngInfo(), dict[str, Any]()
    exif[0x0112] = 6
    if place == "raw profile":
        raw = exif.tobytes()
        text.add_text("Raw profile type exif", f"\nexif\n{len(raw):8d}\n{raw.hex()}\n", zip=True)
        options = {"pnginfo": text}
    elif place == "exif":
        options = {"exif": exif.tobytes()}
    elif kind == "PNG":
        text.add_itxt("XML:com.adobe.xmp", XMP)
        options = {"pnginfo": text}
    else:
        options = {"xmp": XMP.encode()}
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("kind", "place"),
    [(kind, place) for kind in ("JPEG", "PNG", "WEBP") for place in ("exif", "xmp")]
    + [("PNG", "raw profile")],
)
def test_a_file_and_the_picture_opened_from_it_are_turned_alike(kind: str, place: str) -> None:
    """Only EXIF turns a picture, as in browsers. Pillow would turn an open one by XMP and by
    ImageMagick's text, too. Oracle: the pixels of the file's bytes."""
    data = _noted_elsewhere(kind, place)
    of_bytes = upright_picture(data)
    of_open = upright_picture(Image.open(io.BytesIO(data)))
    assert of_open.size == of_bytes.size == ((24, 40) if place == "exif" else (40, 24))
    assert of_open.tobytes() == of_bytes.tobytes()


def test_long_text_in_a_png_is_no_fault() -> None:
    """Viewers open it; Pillow alone refuses more than a megabyte of text."""
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 2_000_000, zip=True)
    out = io.BytesIO()
    Image.new("RGB", (20, 10), (1, 2, 3)).save(out, "PNG", pnginfo=text)
    with pytest.raises(ValueError):
        Image.open(io.BytesIO(out.getvalue())).load()
    assert inspect(out.getvalue()).width == 20
    assert thumbnail(out.getvalue(), longest_px=10) is not None


@pytest.mark.parametrize(
    "chunk",
    [
        (b"iCCP", b"profile\0\0" + zlib.compress(bytes(2_000_000))),
        (b"iCCP", b"profile\0\5junk"),
        (b"sRGB", b""),
        (b"pHYs", b"x"),
        (b"acTL", bytes(3)),
        (b"eXIf", b"junk"),
        (b"prVt", bytes(3_000_000)),
    ],
)
def test_what_a_png_says_beside_its_pixels_is_no_fault(chunk: tuple[bytes, bytes]) -> None:
    """A large colour profile, and broken ones of the chunks that viewers pass over. Oracle: the
    pixels of the same file without the chunk."""
    kind, data = chunk
    piece = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    at = PNG.index(b"IDAT") - 4
    found = open_picture(PNG[:at] + piece + PNG[at:])
    assert found.tobytes() == open_picture(PNG).tobytes()


@pytest.mark.parametrize("mode", ["P", "RGBA", "L", "1"])
def test_an_animated_png_is_its_first_frame(mode: str) -> None:
    """Oracle: the first frame saved alone."""
    noise = np.random.default_rng(1).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
    first, second = (Image.fromarray(pixels).convert(mode) for pixels in noise)
    alone, animated = io.BytesIO(), io.BytesIO()
    first.save(alone, "PNG")
    first.save(animated, "PNG", save_all=True, append_images=[second], duration=50)
    found = open_picture(animated.getvalue())
    assert found.tobytes() == open_picture(alone.getvalue()).tobytes()
