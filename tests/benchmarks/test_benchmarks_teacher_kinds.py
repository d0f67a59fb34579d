"""The table of teachers. Oracle: one picture worked out by hand."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.detector import teacher_kinds
from sharding.format.catalog import write_catalog
from sharding.format.schema import Sample, object_dtype
from sharding.writing.shard_writer import write_shard

PHRASES = [
    [
        {"start": 0, "end": 5, "objects": [0]},
        {"start": 8, "end": 14, "objects": [1]},
        {"start": 20, "end": 24, "objects": []},
    ]
]


def write_objects(folder: Path) -> None:
    """Two true boxes, two objects: the first is right, the second too large for its box but with
    its middle in it."""
    objects = np.zeros(2, object_dtype(feature_size=1, num_top=1, attributes=False))
    objects["box"] = [(0, 0, 10, 10), (0, 0, 40, 40)]
    objects["score"], objects["label"] = (0.9, 0.8), (0, 1)
    truth = {
        "boxes": [(0, 0, 10, 10), (15, 15, 25, 25)],
        "labels": ["dog", "ball"],
        "phrases": PHRASES,
    }
    said = [
        {"text": "a dog", "start": 0, "end": 5, "similarity": [1.0, 0.0]},
        {"text": "the ball", "start": 6, "end": 14, "similarity": [0.2, 0.9]},
    ]
    info = {"captions": ["a dog"], "width": 40, "height": 40, "truth": truth, "phrases": [said]}
    sample = Sample(key="a", image=b"x", extension="jpg", info=info)
    sample = dataclasses.replace(sample, objects=objects)
    write_shard(folder / "heldout-000000.tar", [sample], fingerprint={"is": "test"})
    write_catalog(
        folder,
        kind="objects",
        splits={"heldout-000000.tar": "heldout"},
        metadata={"label_names": ["dog,hound", "ball"]},
    )


def test_a_line_a_teacher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: by hand: 2 objects, AP50 of dog 1 and of ball 0, one of two boxes covered, both boxed
    phrases pointed at, one grounded; a phrase without boxes does not count."""
    write_objects(tmp_path)
    monkeypatch.setattr(sys, "argv", ["teacher_kinds", f"ours={tmp_path}"])
    teacher_kinds.main()
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["teacher", "objects", "AP50", "recall", "pointing", "grounding"]
    assert line.split() == ["ours", "2.0", "50.0%", "50.0%", "100.0%", "50.0%"]
