"""One input becomes one sample or one failure; oracle: written out by hand."""

from __future__ import annotations

from typing import Any

from ingest_corpora import encoded

from sharding.format.schema import Failure, Note, Sample
from stages.ingest.config import IngestConfig
from stages.ingest.sample import make_sample
from stages.ingest.sources.source import Picture
from stages.picture import PictureError

CONFIG = IngestConfig()


def picture(**fields: Any) -> Picture:
    fields = {
        "key": "k",
        "split": "train",
        "read": encoded,
        "captions": ("a",),
        "fields": {},
        **fields,
    }
    return Picture(**fields)


def test_a_blank_caption_takes_its_truth_along() -> None:
    truth: dict[str, Any] = {
        "boxes": [[1.0, 2.0, 11.0, 12.0]],
        "labels": ["cat"],
        "attributes": ["black"],
        "phrases": [[{"start": 0, "end": 1, "objects": [0]}], [], [{"start": 2, "objects": [0]}]],
        "captions": [True, False, False],
    }
    sample, note = make_sample(
        picture(captions=("a", " ", "b c"), truth=truth, fields={"image_id": 3}), CONFIG
    )
    assert isinstance(sample, Sample)
    assert sample.info == {
        "image_id": 3,
        "captions": ["a", "b c"],
        "width": 40,
        "height": 30,
        "truth": {
            **truth,
            "phrases": [truth["phrases"][0], truth["phrases"][2]],
            "captions": [True, False],
        },
    }
    assert note == Note(key="k", reason="blank caption: number 1")


def test_what_the_source_dropped_is_noted() -> None:
    _, note = make_sample(picture(notes=("a box",)), CONFIG)
    assert note == Note(key="k", reason="a box")


def test_a_picture_that_cannot_be_read_fails_with_the_reason() -> None:
    def read() -> bytes:
        raise PictureError("missing picture: x")

    expected = [Failure(key="k", reason="missing picture: x")]
    assert make_sample(picture(read=read), CONFIG) == expected


def test_a_picture_without_captions_is_not_even_read() -> None:
    def read() -> bytes:
        raise AssertionError("read")

    assert make_sample(picture(read=read, captions=()), CONFIG) == [
        Failure(key="k", reason="no captions")
    ]
    failure = Failure(key="k", reason="of the source")
    assert make_sample(failure, CONFIG) == [failure]
