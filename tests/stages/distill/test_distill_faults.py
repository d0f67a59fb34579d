"""What ends a worker and what is the failure of one picture: devices that broke, numbers that are
not finite, and labels that belong to other names."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distill_fakes import FakeTeacher, plain_shards, shard_of, source_of, tree_of, write_images

from sharding.coordination.work_queue import FOLDER
from sharding.format.schema import Failure, Sample
from stages.detector.ops.resize import Prepared
from stages.distill.config import DistillConfig
from stages.distill.inference.failures import DistillError, TeacherFailure
from stages.distill.inference.oom_fallback import Keyed, OomFallback
from stages.distill.inference.stage_timer import Clock
from stages.distill.label import Labeller, finite_or_failure
from stages.distill.precomputed.config import FeaturesConfig
from stages.distill.precomputed.formats.coco_json import CocoJson
from stages.distill.precomputed.formats.record import FeaturesError
from stages.distill.precomputed.names import read_names
from stages.distill.run import distill
from stages.distill.text.phrases import make_chunker
from stages.distill.text.similarity import LexicalSimilarity

CONFIG = DistillConfig(batch_size=1, phrases="lexicon", score_threshold=0.4, min_objects=1)


class BrokenDevice(FakeTeacher):
    """Its device fails with `error` at picture number `at` and, as CUDA's do, ever after."""

    def __init__(self, error: Exception, *, step: str, at: int) -> None:
        super().__init__()
        self._error, self._step, self._left = error, step, at

    def _meet(self, step: str) -> None:
        if step == self._step:
            self._left -= 1
            if self._left < 0:
                raise self._error

    def prepare(self, picture: torch.Tensor) -> Prepared:
        self._meet("prepare")
        return super().prepare(picture)

    def detect(self, prepared: list[Prepared]) -> list[np.ndarray]:
        self._meet("detect")
        return super().detect(prepared)


@pytest.mark.parametrize("step", ["prepare", "detect"])
@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError(
            "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be"
        ),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ],
    ids=["AcceleratorError", "RuntimeError", "cuDNN"],
)
def test_an_error_of_the_device_ends_the_worker_before_anything_is_committed(
    error: Exception, step: str, tmp_path: Path
) -> None:
    """Oracle: the shard at hand has no file and no failed attempt, those before it stay; the same
    stage with a sound device ends with the bytes of an undisturbed run. An error of CUDA stays, so
    whatever follows would be recorded as failed although it is sound."""
    write_images(tmp_path / "images", plain_shards())

    def run(detector: FakeTeacher, out: Path) -> None:
        distill(CONFIG, images=tmp_path / "images", object_source=source_of(detector), out=out)

    with pytest.raises(DistillError, match="the device failed on picture .*CUD"):
        run(BrokenDevice(error, step=step, at=5), tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.tar"))) == 1
    assert not list((tmp_path / "out" / FOLDER).glob("*.failures"))
    run(FakeTeacher(), tmp_path / "out")
    run(FakeTeacher(), tmp_path / "undisturbed")
    assert tree_of(tmp_path / "out") == tree_of(tmp_path / "undisturbed")


def test_where_every_picture_fails_the_stage_does(tmp_path: Path) -> None:
    """Oracle: an error with the number and the reason, again where the shards are done; a teacher
    that labels some of the pictures is no error."""

    class Odd(FakeTeacher):
        def detect(self, prepared: list[Prepared]) -> list[np.ndarray]:
            raise ValueError("an odd picture")

    shards = plain_shards()
    write_images(tmp_path / "images", shards)
    num = sum(map(len, shards.values()))
    for _ in range(2):
        with pytest.raises(DistillError, match=f"all {num} failed .{num} x .*an odd picture"):
            distill(
                CONFIG,
                images=tmp_path / "images",
                object_source=source_of(Odd()),
                out=tmp_path / "out",
            )


@pytest.mark.parametrize("num", [1, 2])
def test_an_error_of_the_device_is_no_failure_of_its_batch(num: int) -> None:
    """Oracle: a DistillError for one picture and for several, which go one by one after others."""
    teacher = BrokenDevice(RuntimeError("CUDA error: unknown error"), step="detect", at=0)
    picture = FakeTeacher().prepare(torch.zeros(8, 8, 3, dtype=torch.uint8))
    with pytest.raises(DistillError, match="device failed on picture p0.*unknown error"):
        OomFallback(teacher, log=print).detect([Keyed(f"p{i}", picture) for i in range(num)])


def test_numbers_that_are_not_finite_fail_their_picture() -> None:
    """Oracle: by hand; a failure that names the field, sound objects unchanged."""
    objects = np.zeros(2, [("box", "<f4", 4), ("feature", "<f2", 3), ("label", "<i4")])
    assert finite_or_failure("p", objects) is objects
    objects["feature"][1, 2] = np.inf
    failed = finite_or_failure("p", objects)
    assert isinstance(failed, TeacherFailure) and "feature that is not finite" in failed.reason


def test_a_similarity_that_is_not_finite_fails_its_picture(tmp_path: Path) -> None:
    """Oracle: one failure with its reason, and every other picture, in a finished stage; the shard
    was set aside for it."""

    class Odd(LexicalSimilarity):
        """A model of vectors that overflows on one word."""

        def compare(self, phrases: Sequence[str], objects: np.ndarray) -> list[list[float]]:
            rows = super().compare(phrases, objects)
            return [[math.nan] * len(row) if "big" in p else row for p, row in zip(phrases, rows)]

    labels = FakeTeacher.label_names
    similarity = Odd(labels, [], object_text="label")
    chunker = make_chunker(CONFIG, labels, FakeTeacher.attribute_names)
    samples = [s for shard in plain_shards().values() for s in shard]
    labeller = Labeller(CONFIG, source_of(FakeTeacher()), chunker, similarity, clock=Clock())
    results = dict(zip([s.key for s in samples], labeller.label(shard_of(samples))))
    failed = {key for key, result in results.items() if isinstance(result, Failure)}
    is_odd = {
        key
        for key, result in results.items()
        if any("big" in caption for caption in _of(samples, key).info["captions"])
        and (isinstance(result, Failure) or result.objects is not None and len(result.objects))
    }
    assert failed == is_odd and failed
    assert {r.reason for r in results.values() if isinstance(r, Failure)} == {
        "phrases: got a similarity that is not finite, expected finite numbers"
    }


def _of(samples: Sequence[Sample], key: str) -> Sample:
    return next(sample for sample in samples if sample.key == key)


def open_coco(
    folder: Path, names: list[str], ids: Sequence[int], written: Callable[[int], Any] = int
) -> CocoJson:
    """Detections of the category `ids`, written so, with a text file of names."""
    (folder / "names.txt").write_text("\n".join(names))
    rows = [
        {
            "image_id": written(i),
            "category_id": written(c),
            "bbox": [0, 0, 2, 2],
            "score": 0.5,
        }
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


@pytest.mark.parametrize("written", [str, float])
def test_ids_of_detections_are_taken_by_value(
    written: Callable[[int], Any], tmp_path: Path
) -> None:
    """Exporters write 7 as "7" or 7.0. Oracle: ids and labels, by hand; and one category outside
    the names is the same proof as of whole numbers."""
    opened = open_coco(tmp_path, ["cat", "dog"], [1, 2, 2], written)
    records = [opened.read(opened.index.find(str(number))) for number in range(3)]
    assert [record.id for record in records] == ["0", "1", "2"]
    assert [record.labels.tolist() for record in records] == [[0], [1], [1]]
    with pytest.raises(FeaturesError, match="category_id 0; .*start at 0"):
        open_coco(tmp_path, ["cat", "dog"], [1, 0, 1], written)
