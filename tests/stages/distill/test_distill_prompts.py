"""Teachers that are asked for the phrases of a picture's own captions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from distill_fakes import FakeTeacher, make_sample, write_images

from sharding.format.schema import object_dtype
from sharding.reading.sample_reader import iterate
from stages.detector.ops.resize import Prepared
from stages.distill.config import DistillConfig
from stages.distill.inference.pipeline import InferencePipeline
from stages.distill.make_object_source import read_captions
from stages.distill.run import distill
from stages.distill.text.caption_prompts import (
    CaptionPrompts,
    caption_labels,
    similarity_by_prompt,
)
from stages.distill.text.phrases import LexiconChunker

CAPTIONS = ["a red circle above a square", "the square"]


class PromptedTeacher(FakeTeacher):
    """An object a phrase, found by it with 0.8, by all others with 0.2."""

    attribute_names: list[str] = []

    def detect(self, prepared: list[Prepared]) -> list[np.ndarray]:
        return [self.ask(picture.prompts) for picture in prepared]

    def ask(self, prompts: tuple[str, ...]) -> np.ndarray:
        dtype = object_dtype(feature_size=self.feature_size, num_top=self.num_top, attributes=False)
        more = [("by_prompt", "<f4", (len(prompts),))]
        objects = np.zeros(len(prompts), np.dtype([*dtype.descr, *more]))
        objects["box"], objects["score"] = (0, 0, 5, 5), 0.8
        objects["by_prompt"] = np.where(np.eye(len(prompts)), 0.8, 0.2)
        return objects


def test_an_object_s_phrase_is_its_similarity(tmp_path: Path) -> None:
    """Oracle: by hand. The phrases of both captions are asked for, each once; an object has 1 with
    the phrase that found it and 0.2 / 0.8 with others; the shard's objects are of the schema."""
    sample = make_sample("0-0", CAPTIONS, np.random.default_rng(0))
    write_images(tmp_path / "images", {"train-000000.tar": [sample]})
    chunker = CaptionPrompts(LexiconChunker(FakeTeacher.label_names, FakeTeacher.attribute_names))
    source = InferencePipeline(PromptedTeacher(), batch_size=1, num_decoders=1, prompts=chunker)
    distill(
        DistillConfig(phrases="lexicon"),
        images=tmp_path / "images",
        object_source=source,
        out=tmp_path / "objects",
        show=False,
    )
    (made,) = iterate(tmp_path / "objects" / "train-000000.tar")
    phrases = [
        [(p["text"], p["similarity"]) for p in of_caption] for of_caption in made.info["phrases"]
    ]
    assert phrases == [
        [("a red circle", [1.0, 0.25, 0.25]), ("a square", [0.25, 1.0, 0.25])],
        [("the square", [0.25, 0.25, 1.0])],
    ]
    assert made.objects is not None and "by_prompt" not in made.objects.dtype.names
    about = json.loads((tmp_path / "objects" / "about.json").read_bytes())["about"]
    assert about["similarity"] == "prompts"
    assert list(read_captions(tmp_path / "images")) == CAPTIONS


def test_labels_are_content_words_of_captions() -> None:
    """Oracle: by hand; one number for singular and plural, in the commonest spelling, function
    words and numbers none; a phrase has the label of its last word that has one, else the first
    label, which is every other thing's."""
    captions = ["Two dogs run.", "A dog and the ball", "dogs, dogs!"]
    labels = caption_labels(captions, most=2)
    assert labels.names == ["thing", "dogs", "ball"]
    asked = ["a dog", "two brown Dogs", "a dog's ball", "the street"]
    assert [labels.label_of(text) for text in asked] == [1, 1, 2, 0]


def test_no_object_is_no_similarity() -> None:
    """Oracle: by definition: an empty row a phrase; scores that are all 0 stay 0."""
    assert similarity_by_prompt(np.zeros((0, 2)), ["a", "b"]) == {"a": [], "b": []}
    assert similarity_by_prompt(np.zeros((1, 1)), ["a"]) == {"a": [0.0]}


def test_a_phrase_hangs_on_its_caption_alone() -> None:
    """Oracle: a chunker that counts what it is given: one caption at a time, and none twice."""
    given: list[list[str]] = []

    class Counting(LexiconChunker):
        def chunk(self, captions):  # type: ignore[no-untyped-def]
            given.append(list(captions))
            return super().chunk(captions)

    prompts = CaptionPrompts(Counting(["circle"], []))
    assert prompts.of(["a circle", "a circle"]) == ("a circle",)
    assert [p.text for p in prompts.chunk(["a circle"])[0]] == ["a circle"]
    assert given == [["a circle"]]
