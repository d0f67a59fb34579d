"""Scenes of the toy data set, and how rows and pictures of task files are written.

A scene's statements are a pure function of its key.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxless.errors import BoxlessError
from sharding.format.schema import Sample
from sharding.writing.atomic import write_text

IMAGES = "images"
NUM_WORDS = ("zero", "one", "two", "three", "four", "five")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")


@dataclass(frozen=True)
class Scene:
    """A scene's number, its sample, and (color, shape, box) of each object."""

    number: int
    sample: Sample
    objects: tuple[tuple[str, str, tuple[float, ...]], ...]

    @property
    def names(self) -> list[str]:
        """ "red circle" of each object."""
        return [f"{color} {shape}" for color, shape, _ in self.objects]


def scene_of(number: int, sample: Sample) -> Scene:
    """A sample of the toy data set as a scene. ValueError where it does not carry the truth about
    it."""
    truth = sample.info.get("truth", {})
    if not {"boxes", "labels", "attributes", "phrases"} <= truth.keys():
        raise BoxlessError(
            f"finetune.data: got nothing and image shards without the truth about their scenes "
            f"({sample.key}); expected the task's own files (finetune.data.train, ...), or "
            "ingest.source toy"
        )
    objects = zip(truth["attributes"], truth["labels"], map(tuple, truth["boxes"]))
    return Scene(number, sample, tuple(objects))


def random_of(scene: Scene, task: str) -> random.Random:
    """The random choices of a scene for a task."""
    digest = hashlib.sha256(f"{task}/{scene.sample.key}".encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "little"))


def write_picture(scene: Scene, path: Path) -> str:
    """Write the scene's picture as it is in its shard; the name of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(scene.sample.image)
    return path.name


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Write an object a line; the path."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def absent_thing(scene: Scene, rng: random.Random) -> str:
    """A color and shape that no object of the scene has together; the shape may be there."""
    while True:
        shape = rng.choice([s for _, s, _ in scene.objects])
        name = f"{rng.choice(COLORS)} {shape}"
        if name not in scene.names:
            return name
