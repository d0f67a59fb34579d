"""What int8 files of a student change: every score they have, sizes, and the time of a picture.

Scores are retrieval among held-out pictures that no range was taken from, of float files and of
int8 ones by ONNX Runtime on this machine; by the matching head, and by the contrastive head where
there is one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.export.onnx_student import OnnxStudent, text_passes
from sharding.format.schema import Sample
from stages.progress import Progress
from stages.transfer.metrics.retrieval_recall import recalls

NUM_TIMED = 21
Scores = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Int8Report:
    """Float beside int8. scores: by name, both from 0 to 1. file_bytes: by file. milliseconds: of
    the parts of one picture and text, the fastest of `NUM_TIMED` rounds, as others' work on the
    machine only adds to them."""

    num_calibrated: int
    num_scored: int
    scores: dict[str, tuple[float, float]]
    file_bytes: dict[str, tuple[int, int]]
    milliseconds: dict[str, tuple[float, float]]

    def lines(self) -> Iterator[str]:
        """For people."""
        yield (
            f"ranges from {self.num_calibrated} held-out pictures, scores on {self.num_scored} others"
        )
        for name, (before, after) in self.scores.items():
            change = 100 * (after - before)
            yield f"{name:36} float {before:.4f}  int8 {after:.4f}  {change:+.2f} points"
        for name, (before, after) in self.file_bytes.items():
            yield (
                f"{name:36} float {before / 1e6:.2f} MB  int8 {after / 1e6:.2f} MB  "
                f"{after / before:.2f} of it"
            )
        for name, (before, after) in self.milliseconds.items():
            yield (
                f"{name:36} float {before:.2f} ms  int8 {after:.2f} ms  "
                f"{before / after:.2f} times as fast"
            )

    def as_json(self) -> dict[str, object]:
        """For int8.json."""
        return asdict(self)


def compare(
    floats: Path,
    integers: Path,
    samples: Sequence[Sample],
    texts: Sequence[str],
    *,
    num_calibrated: int,
    show: bool = True,
) -> Int8Report:
    """Score both folders on pictures with the text of each, and time them in turn."""
    students = {name: OnnxStudent(path) for name, path in (("float", floats), ("int8", integers))}
    scores = [
        scores_of(student, samples, texts, title=name if show else None)
        for name, student in students.items()
    ]
    return Int8Report(
        num_calibrated=num_calibrated,
        num_scored=len(samples),
        scores={name: (value, scores[1][name]) for name, value in scores[0].items()},
        file_bytes={
            name: (_num_bytes(floats / name), _num_bytes(integers / name))
            for name in students["float"].file_names
        },
        milliseconds=_times(students["float"], students["int8"], samples[0], texts[0]),
    )


def scores_of(
    student: OnnxStudent, samples: Sequence[Sample], texts: Sequence[str], *, title: str | None
) -> Scores:
    """Recalls both ways, from 0 to 1; text i is of picture i. title: of the progress shown."""
    passes = text_passes(student, texts)
    by_head: dict[str, torch.Tensor] = {"matching": torch.zeros(len(samples), len(texts))}
    vectors = None
    if student.has_vectors:
        by_head["contrastive"] = torch.zeros(len(samples), len(texts))
        vectors = [student.text_vectors(inputs) for _, inputs in passes]
    with Progress(
        f"retrieval, {title}", total=len(samples), unit="pictures", show=title is not None
    ) as progress:
        for row, sample in enumerate(samples):
            seen = student.encode(student.picture_inputs(sample.image))
            for place, (numbers, inputs) in enumerate(passes):
                odds = student.log_odds(seen, inputs)
                by_head["matching"][row, numbers] = torch.from_numpy(odds)
                if vectors is not None:
                    assert seen.vectors is not None
                    cosines = vectors[place] @ seen.vectors[0]
                    by_head["contrastive"][row, numbers] = torch.from_numpy(cosines)
            progress.advance()
    picture_of = torch.arange(len(samples))
    return {
        f"{head} {name}": entry["value"]
        for head, matrix in by_head.items()
        for name, entry in recalls(matrix, picture_of).items()
    }


def _times(
    floats: OnnxStudent, integers: OnnxStudent, sample: Sample, text: str
) -> dict[str, tuple[float, float]]:
    """Milliseconds of a picture, of a text with it, and of both; the two take turns."""
    inputs, texts = floats.picture_inputs(sample.image), floats.text_inputs([text])
    seconds = np.zeros((NUM_TIMED, 2, 2))
    for round_number in range(NUM_TIMED):
        for column, student in enumerate((floats, integers)):
            began = time.perf_counter()
            seen = student.encode(inputs)
            between = time.perf_counter()
            student.log_odds(seen, texts)
            ended = time.perf_counter()
            seconds[round_number, column] = between - began, ended - between

    def fastest(parts: np.ndarray) -> tuple[float, float]:
        before, after = (1000 * parts.min(axis=0)).tolist()
        return before, after

    return {
        "a picture's cells": fastest(seconds[:, :, 0]),
        "a text with a picture": fastest(seconds[:, :, 1]),
        "a picture to a score": fastest(seconds.sum(axis=2)),
    }


def _num_bytes(path: Path) -> int:
    """Of a file and its external data, which large models have beside it."""
    return sum(each.stat().st_size for each in path.parent.glob(f"{path.name}*"))
