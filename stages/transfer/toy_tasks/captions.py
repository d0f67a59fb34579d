"""Captions of toy scenes in Karpathy's layout, and their phrases in that of Flickr30k Entities."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from sharding.writing.atomic import write_text
from stages.annotations.true_phrases import object_rows
from stages.transfer.toy_tasks.scene import IMAGES, Scene, write_picture

NUM_TEST_PICTURES = 50


def write_retrieval(scenes: Sequence[Scene], folder: Path, split: str) -> dict[str, Any]:
    """Karpathy's layout, a file a split; the test split holds the first scenes, as every picture is
    scored with every text."""
    images = []
    for scene in scenes if split == "train" else scenes[:NUM_TEST_PICTURES]:
        name = write_picture(scene, folder / IMAGES / f"{scene.number}.jpg")
        captions = [{"raw": caption} for caption in scene.sample.info["captions"][:5]]
        images.append(
            {
                "filename": name,
                "split": "train" if split == "train" else "test",
                "sentences": captions,
            }
        )
    path = folder / "dataset_toy.json"
    write_text(path, json.dumps({"images": images, "dataset": "toy"}))
    return {split: str(path)}


def write_grounding(scenes: Sequence[Scene], folder: Path, split: str) -> dict[str, Any]:
    """Flickr30k Entities' layout: the object's row is the phrase's chain."""
    for scene in scenes:
        info = scene.sample.info
        write_picture(scene, folder / IMAGES / f"{scene.number}.jpg")
        lines = []
        for caption, phrases in zip(info["captions"], info["truth"]["phrases"]):
            marked, at = "", 0
            for phrase in phrases:
                row, start, end = object_rows(phrase)[0], phrase["start"], phrase["end"]
                marked += f"{caption[at:start]}[/EN#{row + 1}/other {caption[start:end]}]"
                at = end
            lines.append(marked + caption[at:])
        write_text(folder / "Sentences" / f"{scene.number}.txt", "\n".join(lines) + "\n")
        write_text(folder / "Annotations" / f"{scene.number}.xml", _annotation(scene))
    return {split: str(folder)}


def _annotation(scene: Scene) -> str:
    width, height = scene.sample.info["width"], scene.sample.info["height"]
    things = "".join(
        f"<object><name>{row + 1}</name><bndbox>"
        + "".join(
            f"<{edge}>{int(value) + (edge in ('xmin', 'ymin'))}</{edge}>"
            for edge, value in zip(("xmin", "ymin", "xmax", "ymax"), box)
        )
        + "</bndbox></object>"
        for row, (_, _, box) in enumerate(scene.objects)
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    name = escape(f"{scene.number}.jpg")
    return f"<annotation><filename>{name}</filename>{size}{things}</annotation>\n"
