"""Odd pictures are looked at like others: every mode of JPEG and PNG, sides of a single pixel."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from distill_fakes import picture_bytes, shard_of, source_of
from PIL import Image
from test_batch_invariance import teacher_of

from sharding.format.schema import Failure, Sample
from stages.distill.inference.decode import decode

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
ORIENTATION = 0x0112  # EXIF's tag


def sample_of(image: bytes, extension: str, width: int, height: int) -> Sample:
    return Sample(
        key="s",
        image=image,
        extension=extension,
        info={"captions": [], "width": width, "height": height},
    )


def decoded(image: Image.Image, kind: str, **options: object) -> np.ndarray:
    """The pixels that `decode` gives of `image` saved as `kind`."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    extension = {"JPEG": "jpg", "PNG": "png"}[kind]
    return decode(sample_of(out.getvalue(), extension, image.width, image.height)).numpy()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P"])
def test_pictures_of_every_mode_are_decoded_to_their_colours(mode: str) -> None:
    """Oracle: pixel by pixel, the colours that each mode stands for; transparency is ignored."""
    image = Image.fromarray(PIXELS).convert(mode)
    if mode == "P":
        palette = np.array(image.getpalette()).reshape(-1, 3)
        expected = palette[np.array(image)]
    else:
        bands = np.array(image).reshape(*PIXELS.shape[:2], -1).astype(np.uint8)
        bands = bands * 255 if mode == "1" else bands
        expected = bands[..., :3] if mode.startswith("RGB") else bands[..., :1].repeat(3, 2)
    assert decoded(image, "PNG").tolist() == expected.tolist()


def test_the_four_inks_of_a_jpeg_are_mixed() -> None:
    """Oracle: white of no ink, black of all of the fourth, blue of the first two."""
    for ink, colour in (
        ((0, 0, 0, 0), (255, 255, 255)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((255, 255, 0, 0), (0, 0, 255)),
    ):
        pixels = decoded(Image.new("CMYK", (16, 8), ink), "JPEG", quality=95)
        assert np.abs(pixels.astype(int) - colour).max() <= 3


def test_a_tag_that_turns_the_picture_is_applied() -> None:
    """Oracle: numpy's quarter turn, clockwise, of the same picture without the tag."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # a quarter turn
    data = io.BytesIO()
    Image.fromarray(PIXELS).save(data, "PNG", exif=exif)
    height, width = PIXELS.shape[:2]
    turned = decode(sample_of(data.getvalue(), "png", height, width))
    assert turned.tolist() == np.rot90(PIXELS, -1).tolist()


@pytest.mark.parametrize("net", ["plain", "C4", "FPN"])
def test_pictures_of_any_shape_have_objects_within_them(net: str) -> None:
    """Oracle: the picture's own border; features are finite and boxes are not empty."""
    random = np.random.default_rng(0)
    samples = []
    for height, width in ((1, 60), (60, 1), (1, 1), (1, 2000), (3000, 2)):
        image = picture_bytes(random.integers(0, 256, (height, width, 3), dtype=np.uint8), "png")
        sample = sample_of(image, "png", width, height)
        samples.append(replace(sample, key=f"{height}x{width}"))
    found = source_of(teacher_of(net)).objects(shard_of(samples))
    for sample, objects in zip(samples, found, strict=True):
        assert not isinstance(objects, Failure) and len(objects) > 0
        left, top, right, bottom = torch.from_numpy(objects["box"].copy()).unbind(1)
        assert (0 <= left).all() and (left < right).all() and (right <= sample.info["width"]).all()
        assert (0 <= top).all() and (top < bottom).all() and (bottom <= sample.info["height"]).all()
        assert np.isfinite(objects["feature"].astype(np.float32)).all()
