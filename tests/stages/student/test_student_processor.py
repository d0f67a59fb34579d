"""The student's processor takes what transformers' processors take; oracle: the same call with
lists of paths and of texts."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pretrain_fixtures import tiny_student, toy_tokenizer

from stages.student.processor import StudentProcessor
from stages.transfer.example import Example


@pytest.fixture(scope="module")
def processor() -> StudentProcessor:
    return StudentProcessor.of(tiny_student(), toy_tokenizer())


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (80, 96, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def equal(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in other)


def test_one_picture_and_one_text_need_no_lists(
    processor: StudentProcessor, picture: Image.Image, tmp_path: Path
) -> None:
    """In every form that a picture has; a path is a picture, not a list of letters."""
    path = tmp_path / "one.png"
    picture.save(path)
    expected = processor([path], ["a red square"])
    assert expected["input_ids"].shape[0] == 1
    pixels = np.asarray(picture)
    forms: list[Any] = [
        path,
        str(path),
        path.read_bytes(),
        picture,
        pixels,
        torch.tensor(pixels),
        torch.tensor(pixels).permute(2, 0, 1),
        [picture],
        (pixels,),
        pixels[None],
    ]
    for form in forms:
        assert equal(processor(form, "a red square"), expected)
    spans = [("question", "a red"), ("answer", "square")]
    of_parts = replace(processor, num_token_types=8)
    assert equal(of_parts(texts=spans), of_parts(texts=[spans]))
    assert equal(processor(picture) | processor(texts="a red square"), expected)
    assert processor(picture, "a").to("cpu")["pixel_values"].device.type == "cpu"


def test_the_arguments_of_transformers_processors_are_taken(
    processor: StudentProcessor, picture: Image.Image
) -> None:
    """`images=`, `text=`, `return_tensors=`, `padding=`, `truncation=`. Oracle: the call with our
    own names; what cannot be had is refused by name."""
    expected = processor([picture], ["a red square", "a"])
    given: dict[str, Any] = {"images": picture, "text": ["a red square", "a"]}
    found = processor(**given, return_tensors="pt", padding=True, truncation=True)
    assert equal(found, expected) and equal(processor(**given, padding="longest"), expected)
    for name, value in (("return_tensors", "np"), ("padding", "max_length"), ("truncation", False)):
        with pytest.raises(ValueError, match=f"{name}: got {value!r}, expected"):
            processor(**given, **{name: value})
    short = replace(processor, max_tokens=4)
    assert equal(processor(**given, max_length=4), short(**given))
    for length in (2, processor.max_tokens + 1):
        with pytest.raises(ValueError, match=f"max_length: got {length}, expected 3 to"):
            processor(**given, max_length=length)
    with pytest.raises(ValueError, match="got pictures and images, expected one"):
        processor(picture, **given)


@pytest.mark.parametrize(
    ("pictures", "texts", "reported"),
    [
        (None, None, "neither pictures nor texts"),
        ([], "x", "pictures: got none, expected one or a list"),
        (Image.new("RGB", (40, 40)), [], "texts: got none"),
        (Image.new("RGB", (40, 40)), [5], "texts: got int '5'"),
        (3.5, "x", "pictures: got float"),
        (np.zeros((40, 40, 3), np.float32), "x", "not pixels: got float32"),
        (np.zeros((40, 40, 4), np.uint8), "x", "not pixels"),
        (b"GIF89a", "x", "not JPEG, PNG or WebP: it is GIF"),
        (Image.new("I;16", (40, 40)), "x", "16-bit greyscale"),
        (Image.new("F", (40, 40)), "x", "greyscale of floating point"),
        ("https://example.org/a.jpg", "x", "download a URL first"),
        ("", "x", "got '', expected a file"),
    ],
)
def test_what_is_no_picture_or_text_is_refused(
    processor: StudentProcessor, pictures: Any, texts: Any, reported: str
) -> None:
    """As ingest refuses it, by a ValueError that says what was expected."""
    with pytest.raises(ValueError, match=reported):
        processor(pictures, texts)


def test_half_a_character_is_read_as_a_question_mark(processor: StudentProcessor) -> None:
    """As ingest writes it: JSON may hold a lone surrogate, and Python makes some of bytes that are
    not UTF-8 on a command line. Oracle: the text with "?", alone and as a part."""
    assert equal(processor(texts="red \ud83d a\udce9"), processor(texts="red ? a?"))
    half, whole = ([[("question", text)]] for text in ("caf\udce9", "caf?"))
    assert equal(processor(texts=half), processor(texts=whole))
    [text, [(_, part)]] = Example(id="0", images=(), texts=("\ud83d", half[0])).texts
    assert (text, part) == ("?", "caf?")


def test_a_picture_that_is_open_is_turned_upright(processor: StudentProcessor) -> None:
    """Oracle: its own bytes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    Image.new("RGB", (96, 48), (200, 10, 10)).save(out, "JPEG", exif=exif.tobytes())
    opened = Image.open(io.BytesIO(out.getvalue()))
    assert equal(processor(opened), processor(out.getvalue()))


def test_word_pieces_are_decoded_as_by_transformers_processors(processor: StudentProcessor) -> None:
    """Oracle: the texts that the pieces are of."""
    texts = ["a red square", "a blue circle"]
    pieces = processor(texts=texts)["input_ids"]
    assert processor.batch_decode(pieces, skip_special_tokens=True) == texts
    assert processor.decode(pieces[0], skip_special_tokens=True) == texts[0]
