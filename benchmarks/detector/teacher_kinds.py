"""Compares teachers by their object shards: true boxes, a trained teacher, another one.

    python -m benchmarks.detector.teacher_kinds NAME=OBJECTS [NAME=OBJECTS ...] [--split heldout]

Each OBJECTS is a folder of object shards of the same corpus, whose source has true boxes, as
`boxless distill` wrote it (RUN/objects). A line a teacher:

    objects    a picture
    AP50       over the true labels that the teacher has a name for; "-" where it has none
    recall     share of true boxes that an object of any label overlaps by 0.5 or more
    pointing   share of boxed phrases whose most similar object has its middle in a true box of
               theirs; of equally similar objects the best scored one counts
    grounding  share of boxed phrases whose most similar object overlaps one of these by 0.5 or more

The phrases are those of the corpus (Flickr30k Entities' for instance), each met by the shard's
phrase that shares most characters with it; one that meets none, or no object, is a miss. Without
such phrases the last two are "-".
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sharding.format.catalog import read_catalog
from sharding.format.schema import Sample
from sharding.reading.sample_reader import iterate
from stages.detector.evaluation.evaluate import LEAST_IOU, average_precision
from stages.detector.ops.boxes import iou
from stages.detector.training.labeled_pictures import NO_ATTRIBUTE, Truth

HEADER = f"{'teacher':24s}{'objects':>9}{'AP50':>9}{'recall':>9}{'pointing':>10}{'grounding':>11}"


@dataclass
class Counts:
    """What was counted over the pictures of one teacher."""

    num_objects: int = 0
    num_true: int = 0
    num_covered: int = 0
    num_phrases: int = 0
    num_pointed: int = 0
    num_grounded: int = 0
    found: list[np.ndarray] = field(default_factory=list)
    truths: list[Truth] = field(default_factory=list)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("teachers", nargs="+", metavar="NAME=OBJECTS")
    parser.add_argument("--split", default="heldout")
    options = parser.parse_args()
    print(HEADER)
    for teacher in options.teachers:
        name, _, folder = teacher.partition("=")
        print(line(name, count(Path(folder), options.split), len(label_names(Path(folder)))))


def label_names(folder: Path) -> list[str]:
    """The teacher's labels, without synonyms."""
    names = read_catalog(folder).metadata["label_names"]
    return [str(name).split(",")[0] for name in names]


def count(folder: Path, split: str) -> Counts:
    """Counts over the pictures of `split` that have true boxes."""
    numbers = {name: number for number, name in enumerate(label_names(folder))}
    counts = Counts()
    for shard in read_catalog(folder).shards:
        if shard.split == split:
            for sample in iterate(folder / shard.tar):
                if "truth" in sample.info:
                    _count(counts, sample, numbers)
    return counts


def line(name: str, counts: Counts, num_labels: int) -> str:
    """One teacher's line of the table."""
    by_label = average_precision(counts.found, counts.truths, num_labels)
    known = by_label[~np.isnan(by_label)]
    pictures = max(len(counts.found), 1)
    return (
        f"{name:24s}{counts.num_objects / pictures:9.1f}"
        f"{_percent(known.mean() if len(known) else None):>9}"
        f"{_share(counts.num_covered, counts.num_true):>9}"
        f"{_share(counts.num_pointed, counts.num_phrases):>10}"
        f"{_share(counts.num_grounded, counts.num_phrases):>11}"
    )


def _count(counts: Counts, sample: Sample, numbers: dict[str, int]) -> None:
    """Add one picture; `numbers` of the teacher's labels."""
    objects, truth = sample.objects, sample.info["truth"]
    assert objects is not None
    boxes = torch.tensor(truth["boxes"], dtype=torch.float32).view(-1, 4)
    overlap = iou(torch.from_numpy(objects["box"].copy()), boxes).numpy()
    counts.num_objects += len(objects)
    counts.num_true += len(boxes)
    counts.num_covered += int((overlap.max(axis=0, initial=0.0) >= LEAST_IOU).sum())
    known = [row for row, label in enumerate(truth["labels"]) if label in numbers]
    labels = torch.tensor([numbers[truth["labels"][row]] for row in known], dtype=torch.long)
    counts.found.append(objects)
    counts.truths.append(Truth(boxes[known], labels, torch.full_like(labels, NO_ATTRIBUTE)))
    for rows, row in _phrases(sample):
        counts.num_phrases += 1
        if row is not None:
            counts.num_grounded += bool(overlap[row, rows].max() >= LEAST_IOU)
            counts.num_pointed += _points(objects["box"][row], boxes[rows].numpy())


def _phrases(sample: Sample) -> Iterator[tuple[list[int], int | None]]:
    """Of each boxed phrase of the truth its boxes' rows, and the row of the most similar object."""
    truth = sample.info["truth"].get("phrases", [])
    for wanted, seen in zip(truth, sample.info["phrases"]):
        for phrase in wanted:
            if phrase["objects"]:
                yield phrase["objects"], _most_similar(phrase, seen)


def _most_similar(phrase: dict[str, Any], seen: list[dict[str, Any]]) -> int | None:
    """Row of the object nearest to the one of the phrases `seen` that shares most characters."""

    def shared(other: dict[str, Any]) -> int:
        return min(phrase["end"], other["end"]) - max(phrase["start"], other["start"])

    best = max(seen, key=shared, default=None)
    if best is None or shared(best) <= 0 or max(best["similarity"], default=0.0) <= 0:
        return None
    return int(np.argmax(best["similarity"]))


def _points(box: np.ndarray, boxes: np.ndarray) -> bool:
    """Whether the middle of `box` [4] is in one of `boxes` [N, 4]."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    inside = (boxes[:, 0] <= x) & (x < boxes[:, 2]) & (boxes[:, 1] <= y) & (y < boxes[:, 3])
    return bool(inside.any())


def _share(part: int, whole: int) -> str:
    return _percent(part / whole if whole else None)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


if __name__ == "__main__":
    main()
