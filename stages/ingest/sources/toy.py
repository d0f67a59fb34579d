"""The toy data set: scenes of coloured shapes with captions and complete ground truth.

A scene is a pure function of (seed, split, number), so shards are the same bytes wherever they are
made. Train and held-out scenes share no set of objects.

A scene holds two to five objects on a textured ground. An object is a shape in a colour, small or
large; no two objects of a scene share both shape and colour, so "the red circle" means one object.
A caption names two or three objects and the relation of the first two.
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from stages.ingest.sources.source import DroppedRecords, Failure, Picture

SIDE_PX = 96
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "moon")
COLOURS = {
    "red": (214, 40, 40),
    "green": (56, 158, 70),
    "blue": (38, 84, 200),
    "yellow": (240, 205, 50),
    "purple": (132, 60, 170),
    "orange": (242, 132, 30),
    "white": (242, 242, 242),
    "black": (24, 24, 24),
}
SIZES_PX = {"small": (18, 23), "large": (29, 36)}
NUM_OBJECTS = (2, 5)
NUM_CAPTIONS = 4
GAP_PX = 2
SUPERSAMPLE = 3
JPEG_QUALITY = 92


@dataclass(frozen=True, kw_only=True)
class ToyObject:
    """One drawn object: its box (xyxy, pixels) and what a caption may say of it."""

    box: tuple[int, int, int, int]
    shape: str
    colour: str
    size: str

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box, (x, y) in pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A sentence and its phrases: (start, end, object row), characters, end exclusive."""

    text: str
    phrases: tuple[tuple[int, int, int], ...]


class ToySource:
    """`num_train` + `num_heldout` scenes from `seed`, as an ingest source."""

    label_names = list(SHAPES)
    attribute_names = list(COLOURS)
    warnings: Sequence[str] = ()

    def __init__(self, *, num_train: int, num_heldout: int, seed: int) -> None:
        self.num_train, self.num_heldout, self.seed = num_train, num_heldout, seed
        self.dropped = DroppedRecords()

    def pictures(self) -> Sequence[Picture | Failure]:
        """All scenes, train first; drawing waits until a picture is read.

        A scene whose objects (shapes, colours and sizes, wherever they are) are already in the
        other split is drawn again from the next number, so that the splits share no scene.
        """
        taken_by: dict[frozenset[tuple[str, str, str]], str] = {}
        pictures: list[Picture | Failure] = []
        for split, wanted in (("heldout", self.num_heldout), ("train", self.num_train)):
            number = count = 0
            while count < wanted:
                objects = place_objects(self.seed, split, number)
                kinds = frozenset((o.shape, o.colour, o.size) for o in objects)
                if taken_by.setdefault(kinds, split) == split:
                    pictures.append(self._picture(split, number, objects))
                    count += 1
                number += 1
        return pictures

    def fingerprint(self) -> str:
        """Names the data set: sizes, seed and the version of this drawing code."""
        name = f"toy/1 {self.num_train} {self.num_heldout} {self.seed}"
        return hashlib.sha256(name.encode()).hexdigest()

    def _picture(self, split: str, number: int, objects: list[ToyObject]) -> Picture:
        captions = write_captions(objects, _random(self.seed, split, number, "captions"))
        key = f"toy-{split}-{number:06d}"
        return Picture(
            key=key,
            split=split,
            read=functools.partial(draw_jpeg, self.seed, split, number),
            captions=tuple(caption.text for caption in captions),
            fields={"image_id": key, "source": "toy"},
            truth={
                "boxes": [list(map(float, o.box)) for o in objects],
                "labels": [o.shape for o in objects],
                "attributes": [o.colour for o in objects],
                "phrases": [
                    [{"start": s, "end": e, "objects": [row]} for s, e, row in caption.phrases]
                    for caption in captions
                ],
            },
        )


def place_objects(seed: int, split: str, number: int) -> list[ToyObject]:
    """The objects of a scene, boxes at least `GAP_PX` apart, inside the picture."""
    random = _random(seed, split, number, "objects")
    objects: list[ToyObject] = []
    wanted = int(random.integers(NUM_OBJECTS[0], NUM_OBJECTS[1] + 1))
    for _ in range(200):
        if len(objects) == wanted:
            break
        size = str(random.choice(list(SIZES_PX)))
        side = int(random.integers(SIZES_PX[size][0], SIZES_PX[size][1] + 1))
        x, y = (int(v) for v in random.integers(1, SIDE_PX - side, size=2))
        candidate = ToyObject(
            box=(x, y, x + side, y + side),
            shape=str(random.choice(SHAPES)),
            colour=str(random.choice(list(COLOURS))),
            size=size,
        )
        if not any(_clash(candidate, other) for other in objects):
            objects.append(candidate)
    return objects


def draw_jpeg(seed: int, split: str, number: int) -> bytes:
    """The scene as JPEG bytes, `SIDE_PX` square."""
    picture = _ground(_random(seed, split, number, "ground"))
    for o in place_objects(seed, split, number):
        side = o.box[2] - o.box[0]
        mask = Image.new("L", (side * SUPERSAMPLE, side * SUPERSAMPLE))
        _draw_shape(ImageDraw.Draw(mask), o.shape, side * SUPERSAMPLE)
        mask = mask.resize((side, side), Image.Resampling.BOX)
        picture.paste(Image.new("RGB", (side, side), COLOURS[o.colour]), o.box[:2], mask)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()


def write_captions(objects: list[ToyObject], random: np.random.Generator) -> list[Caption]:
    """`NUM_CAPTIONS` sentences of the grammar, each true of the scene.

    caption := phrase RELATION phrase [" and " phrase], over objects in a random order.
    """
    captions = []
    for _ in range(NUM_CAPTIONS):
        rows = [int(row) for row in random.permutation(len(objects))[:3]]
        words = [_phrase(objects[row], random) for row in rows]
        joints = [f" {_relation(objects[rows[0]], objects[rows[1]])} ", " and "]
        text, spans = "", []
        for i, (row, phrase) in enumerate(zip(rows, words)):
            text += joints[i - 1] if i else ""
            spans.append((len(text), len(text) + len(phrase), row))
            text += phrase
        captions.append(Caption(text=text, phrases=tuple(spans)))
    return captions


def _random(seed: int, *names: object) -> np.random.Generator:
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def _clash(a: ToyObject, b: ToyObject) -> bool:
    apart = (
        a.box[0] >= b.box[2] + GAP_PX
        or b.box[0] >= a.box[2] + GAP_PX
        or a.box[1] >= b.box[3] + GAP_PX
        or b.box[1] >= a.box[3] + GAP_PX
    )
    return not apart or (a.shape, a.colour) == (b.shape, b.colour)


def _phrase(o: ToyObject, random: np.random.Generator) -> str:
    article = str(random.choice(["a", "the"]))
    size = f"{o.size} " if random.random() < 0.5 else ""
    return f"{article} {size}{o.colour} {o.shape}"


def _relation(a: ToyObject, b: ToyObject) -> str:
    """The relation of `a` to `b`, along the axis on which their centres are farther apart."""
    dx, dy = a.centre[0] - b.centre[0], a.centre[1] - b.centre[1]
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def _ground(random: np.random.Generator) -> Image.Image:
    """A muted ground with soft blotches and grain."""
    base = random.uniform(95, 185, size=3)
    blotches = random.normal(0, 26, size=(7, 7, 3))
    grain = random.normal(0, 7, size=(SIDE_PX, SIDE_PX, 3))
    soft = np.stack(
        [
            np.asarray(
                Image.fromarray(blotches[..., c].astype(np.float32)).resize(
                    (SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC
                )
            )
            for c in range(3)
        ],
        axis=-1,
    )
    pixels = np.clip(base + soft + grain, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).filter(ImageFilter.SMOOTH)


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, side: int) -> None:
    """Fill `shape` into a side x side mask."""
    last = side - 1
    third, half = side // 3, side / 2
    if shape == "circle":
        draw.ellipse((0, 0, last, last), fill=255)
    elif shape == "square":
        draw.rectangle((0, 0, last, last), fill=255)
    elif shape == "ring":
        draw.ellipse((0, 0, last, last), fill=255)
        draw.ellipse((third, third, last - third, last - third), fill=0)
    elif shape == "cross":
        draw.rectangle((third, 0, last - third, last), fill=255)
        draw.rectangle((0, third, last, last - third), fill=255)
    elif shape == "moon":
        draw.ellipse((0, 0, last, last), fill=255)
        draw.ellipse((side * 0.38, -side * 0.05, side * 1.2, side * 0.77), fill=0)
    else:
        draw.polygon(_corners(shape, half), fill=255)


def _corners(shape: str, half: float) -> list[tuple[float, float]]:
    """Corners of the polygons, touching the box on its sides."""
    if shape == "triangle":
        return [(half, 0), (2 * half - 1, 2 * half - 1), (0, 2 * half - 1)]
    if shape == "diamond":
        return [(half, 0), (2 * half - 1, half), (half, 2 * half - 1), (0, half)]
    assert shape == "star", shape
    points = []
    for corner in range(10):
        radius = half if corner % 2 == 0 else half * 0.45
        angle = math.pi * (corner / 5 - 0.5)
        points.append((half + radius * math.cos(angle), half + radius * math.sin(angle)))
    return points
