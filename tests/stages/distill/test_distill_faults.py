"""What ends a worker and what is the failure of one picture: devices that broke, numbers that are
not finite, and labels that belong to other names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from distill_fakes import FakeTeacher

from stages.detector.ops.resize import Prepared
from stages.distill.inference.failures import DistillError, TeacherFailure
from stages.distill.inference.oom_fallback import Keyed, OomFallback
from stages.distill.label import finite_or_failure
from stages.distill.precomputed.config import FeaturesConfig
from stages.distill.precomputed.formats.coco_json import CocoJson
from stages.distill.precomputed.formats.record import FeaturesError
from stages.distill.precomputed.names import read_names


class BrokenDevice(FakeTeacher):
    """Its device failed, as CUDA says it."""

    def detect(self, prepared: list[Prepared]) -> list[np.ndarray]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_an_error_of_the_device_ends_the_worker() -> None:
    """Oracle: a DistillError for one picture and for several, not a failure of each: the error
    stays, so whatever follows would be recorded as failed although it is sound."""
    teacher = BrokenDevice()
    picture = teacher.prepare(torch.zeros(8, 8, 3, dtype=torch.uint8))
    for num in (1, 2):
        batch = [Keyed(f"p{i}", picture) for i in range(num)]
        with pytest.raises(DistillError, match="device failed on picture p0.*illegal memory"):
            OomFallback(teacher, log=print).detect(batch)


def test_numbers_that_are_not_finite_fail_their_picture() -> None:
    """Oracle: by hand; a failure that names the field, sound objects unchanged."""
    objects = np.zeros(2, [("box", "<f4", 4), ("feature", "<f2", 3), ("label", "<i4")])
    assert finite_or_failure("p", objects) is objects
    objects["feature"][1, 2] = np.inf
    failed = finite_or_failure("p", objects)
    assert isinstance(failed, TeacherFailure) and "feature that is not finite" in failed.reason


def open_coco(folder: Path, names: list[str], ids: list[int]) -> CocoJson:
    """Detections of the category `ids`, with a text file of names."""
    (folder / "names.txt").write_text("\n".join(names))
    rows = [
        {"image_id": i, "category_id": c, "bbox": [0, 0, 2, 2], "score": 0.5}
        for i, c in enumerate(ids)
    ]
    (folder / "found.json").write_text(json.dumps(rows))
    config = FeaturesConfig(
        format="coco-json", path=str(folder / "found.json"), labels=str(folder / "names.txt"),
        feature_size=None,
    )  # fmt: skip
    labels = read_names(str(folder / "names.txt"), field="labels", section="label")
    return CocoJson(config, labels, folder=None, show=False)


def test_one_category_outside_the_names_stops_all(tmp_path: Path) -> None:
    """Oracle: lines of a text file are numbers from 1; ids from 0 would give every object the label
    before its own. The message says what to give instead; ids from 1 are read."""
    assert open_coco(tmp_path, ["cat", "dog"], [1, 2]) is not None
    with pytest.raises(FeaturesError, match="category_id 0; .*start at 0.*categories"):
        open_coco(tmp_path, ["cat", "dog"], [1, 0, 1])
    with pytest.raises(FeaturesError, match="category_id 3; expected .* 1 to 2"):
        open_coco(tmp_path, ["cat", "dog"], [1, 3])
