"""Inputs of commands about a student: its folder, and pairs of a picture and a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from boxless.errors import BoxlessError
from pipeline.pages.shards.shard_browser import Broken, open_browser
from pipeline.runner.run_files import read_object
from sharding.format.schema import Sample
from stages.picture import PictureError, inspect_picture, read_picture_file
from stages.transfer.predictor import Predictor

MOST_EXAMPLES = 200


class InputError(BoxlessError):
    """Something given that cannot be used; the text says what was expected."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A picture and a text. `is_true`: whether the text is true of it, None where unknown."""

    sample: Sample
    text: str
    is_true: bool | None = None


@dataclass(frozen=True, kw_only=True)
class ExampleInputs:
    """Where examples come from: files with texts, or shards.

    pictures, texts: one text for all pictures, one picture for all texts, or as many of each.
    shards: a tar, a folder of shards or a URL of either; the first caption of each sample counts.
    keys: samples by key or pattern, none for `num` of them, evenly spread.
    """

    pictures: tuple[Path, ...] = ()
    texts: tuple[str, ...] = ()
    shards: str | None = None
    keys: tuple[str, ...] = ()
    num: int = 8

    def __post_init__(self) -> None:
        if bool(self.pictures) == bool(self.shards):
            raise InputError(
                "got both --picture and --shards, expected one of them"
                if self.shards
                else "got no example, expected --picture FILE with --text TEXT, or --shards DIR"
            )
        if self.shards and self.texts:
            raise InputError("got --text with --shards, expected the captions of the shards alone")
        if self.pictures and self.keys:
            raise InputError("got --key with --picture, expected it with --shards")
        num_pictures, num_texts = len(self.pictures), len(self.texts)
        if self.pictures and (not num_texts or num_pictures != num_texts > 1 < num_pictures):
            raise InputError(
                f"got {num_pictures} --picture and {num_texts} --text, expected as many of each, "
                "or one of either for all"
            )
        if not 1 <= self.num <= MOST_EXAMPLES:
            raise InputError(f"num: got {self.num}, expected 1 to {MOST_EXAMPLES} examples")

    def examples(self) -> Iterator[Example]:
        """The examples in their order. Raises InputError on a picture that cannot be read,
        ShardError on shards, or keys, that are not there."""
        if self.shards is None:
            yield from _of_files(self.pictures, self.texts)
            return
        browser = open_browser(self.shards)
        places = browser.find(self.keys, self.num) if self.keys else browser.spread(self.num)
        for found in browser.read(places):
            if isinstance(found, Broken):
                raise InputError(
                    f"{found.key} in {found.shard}: got a damaged sample ({found.reason}), "
                    "expected an intact one; name others with --key"
                )
            yield from _of_sample(found.sample)


def _of_files(pictures: Sequence[Path], texts: Sequence[str]) -> Iterator[Example]:
    number = max(len(pictures), len(texts))
    for i in range(number):
        picture = pictures[i if len(pictures) > 1 else 0]
        yield Example(sample=_sample(picture), text=texts[i if len(texts) > 1 else 0])


def _sample(picture: Path) -> Sample:
    """A file's picture as a sample."""
    try:
        data = read_picture_file(picture)
        facts = inspect_picture(data)
    except (OSError, PictureError) as error:
        raise InputError(
            f"{picture}: got {type(error).__name__}: {error}, expected a picture"
        ) from error
    return Sample(
        key=picture.stem,
        image=data,
        extension=facts.extension,
        info={"captions": [], "width": facts.width, "height": facts.height},
    )


def _of_sample(sample: Sample) -> Iterator[Example]:
    """The first caption, and whether it is true; nothing for a sample without captions."""
    captions = sample.info["captions"]
    if captions:
        truths = sample.info.get("truth", {}).get("captions") or [True]
        yield Example(sample=sample, text=captions[0], is_true=bool(truths[0]))


def open_student(folder: Path) -> Predictor:
    """A student folder, as RUN/student; InputError where there is none."""
    kind = read_object(folder / "config.json").get("model_type")
    if kind != "boxless-student":
        found = f"one of model_type {kind!r}" if kind else "none with a config.json"
        raise InputError(
            f"{folder}: got {found}, expected a student's folder, as pretrain writes RUN/student"
        )
    return Predictor.load(folder)
