"""The NLVR corpus: sentences about small generated pictures, true or false of each.

Corpus and layout: Suhr, Lewis, Yeh and Artzi, ACL 2017; https://github.com/lil-lab/nlvr, folder
`nlvr`. SPLIT/SPLIT.json has an example a line, SPLIT/images/DIRECTORY/SPLIT-IDENTIFIER-K.png is its
picture in order K of its three boxes.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stages.annotations.nlvr import COLORS
from stages.ingest.files import (
    describe_folder,
    open_folder,
    read_picture,
    size_bytes,
)
from stages.ingest.sources.source import (
    DroppedRecords,
    Failure,
    Picture,
    SourceError,
    clean_caption,
    inputs_fingerprint,
    safe_key,
    shown,
)
from stages.ingest.splits import draw_split
from stages.ingest.truth import finite_numbers
from stages.json_text import parse_json

SPLITS = ("train", "dev", "test")
KEYS = ("sentence", "label", "identifier", "directory", "structured_rep")
SHAPES = ("circle", "square", "triangle")
SLOT_STEP_PX = 150  # a box is 100 pixels wide, the gap after it 50
ORDERS = tuple(itertools.permutations(range(3)))  # slot i of order K shows box ORDERS[K][i]


class NlvrSource:
    """Every example in its first `num_orders` orders, from each split folder that is there.

    Held out by presentation: the examples "n-0" to "n-3" were shown to the writer together and
    share a sentence, so n goes to one split as a whole. Raises SourceError at once where `root` is
    not such a corpus.
    """

    label_names: Sequence[str] = SHAPES
    attribute_names: Sequence[str] = tuple(COLORS.values())
    warnings: Sequence[str] = ()

    def __init__(self, *, root: str, num_orders: int, seed: int, heldout_fraction: float) -> None:
        self._root = _find_corpus(root)
        self.dropped = DroppedRecords()
        self._split = functools.partial(draw_split, seed=seed, heldout_fraction=heldout_fraction)
        files = [self._root / split / f"{split}.json" for split in SPLITS]
        files = [file for file in files if file.is_file()]
        self._pictures = [
            self._picture(file.stem, example, order)
            for file in files
            for example in _read_examples(file, self.dropped)
            for order in range(num_orders)
        ]
        if all(picture.size_bytes < 0 for picture in self._pictures):
            first = shown(self._pictures[0].origin) if self._pictures else "there is no example"
            raise SourceError(
                f"ingest.root is {root!r}: {', '.join(file.name for file in files)} is there, but "
                f"not one picture (the first: {first}); expected a complete clone"
            )

    def pictures(self) -> Sequence[Picture | Failure]:
        """One input an example and order, in the order of the files."""
        return self._pictures

    def fingerprint(self) -> str:
        """Hash of the examples and of the pictures' names and sizes."""
        return inputs_fingerprint(self._pictures)

    def _picture(self, split: str, example: dict[str, Any], order: int) -> Picture:
        identifier = example["identifier"]
        name = f"{split}/images/{example['directory']}/{split}-{identifier}-{order}.png"
        truth, notes = place_boxes(example["structured_rep"], ORDERS[order])
        truth["captions"] = [example["label"].lower() == "true"]
        return Picture(
            key=safe_key(f"{split}-{identifier}-{order}"),
            split=self._split(identifier.split("-")[0]),
            read=functools.partial(read_picture, self._root, name),
            captions=(clean_caption(example["sentence"]),),
            fields={
                "image_id": shown(f"{split}-{identifier}-{order}"),
                "source": "nlvr",
                "identifier": shown(identifier),
                "order": order,
                "corpus_split": split,
            },
            truth=truth,
            origin=name,
            size_bytes=size_bytes(self._root, name),
            notes=tuple(notes),
        )


def place_boxes(
    boxes: list[list[dict[str, Any]]], order: Sequence[int]
) -> tuple[dict[str, list[Any]], list[str]]:
    """(truth, notes): the objects of the three boxes where the picture in `order` shows them.

    Slot i starts at x = 150 i and shows box order[i]; an object covers `size` pixels from its top
    left corner (`x_loc`, `y_loc`). Objects of a shape or colour the corpus does not have are noted.
    """
    truth: dict[str, list[Any]] = {"boxes": [], "labels": [], "attributes": []}
    notes = []
    for slot, box in enumerate(order):
        for thing in boxes[box]:
            said = thing if isinstance(thing, dict) else {}
            place = finite_numbers([said.get(k) for k in ("x_loc", "y_loc", "size")], count=3)
            known = said.get("type") in SHAPES and str(said.get("color")) in COLORS
            if place is None or not known:
                notes.append(shown(f"unknown object: {str(thing)[:120]}"))
                continue
            x, y, size = SLOT_STEP_PX * slot + place[0], place[1], place[2]
            truth["boxes"].append([x, y, x + size, y + size])
            truth["labels"].append(said["type"])
            truth["attributes"].append(COLORS[said["color"]])
    return truth, notes


def _find_corpus(root: str) -> Path:
    """`root`, or its folder `nlvr`, as in a clone of the whole repository."""
    expected = "the NLVR corpus: a folder with train/train.json or dev/dev.json"
    folder = open_folder(root, field="ingest.root", expected=expected)
    for corpus in (folder, folder / "nlvr"):
        if any((corpus / split / f"{split}.json").is_file() for split in SPLITS):
            return corpus
    raise SourceError(
        f"ingest.root is {root!r} ({describe_folder(folder)}); expected {expected} "
        "(git clone https://github.com/lil-lab/nlvr)"
    )


def _read_examples(file: Path, dropped: DroppedRecords) -> Iterator[dict[str, Any]]:
    """The valid examples of a split; broken lines are counted and named, SourceError where none of
    several is valid."""
    num_valid, first = 0, ""
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                example = _check_example(parse_json(line), f"{file}, line {number}")
            except SourceError as error:
                fault = str(error)
            except (ValueError, RecursionError) as error:  # JSON and Unicode errors are ValueErrors
                fault = (
                    f"{file}, line {number} is not an example in JSON ({error}); expected the file "
                    "that the NLVR corpus has there"
                )
            else:
                num_valid += 1
                yield example
                continue
            first = first or fault
            dropped.add("broken line of examples", fault.removeprefix(f"{file.parent}/"))
    if first and not num_valid:
        raise SourceError(first)


def _check_example(example: object, where: str) -> dict[str, Any]:
    if not isinstance(example, dict):
        raise SourceError(f"{where}: got a JSON {type(example).__name__}; expected an object")
    missing = [key for key in KEYS if key not in example]
    if missing:
        raise SourceError(
            f"{where}: {', '.join(missing)} missing among {', '.join(sorted(example))}; expected "
            "an example of NLVR (NLVR2 is another corpus, with photographs)"
        )
    example["directory"] = str(example["directory"])
    for key in ("identifier", "label"):
        example[key] = str(example[key])
    if example["label"].lower() not in ("true", "false"):
        raise SourceError(f"{where}: label is {example['label']!r}; expected true or false")
    boxes = example["structured_rep"]
    if not isinstance(boxes, list) or list(map(type, boxes)) != [list] * 3:
        raise SourceError(f"{where}: structured_rep is {str(boxes)[:80]}; expected three lists")
    return example
