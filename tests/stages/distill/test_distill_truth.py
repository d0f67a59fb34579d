"""The true boxes as a perfect teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pretrain_fixtures import toy_samples

from sharding.format.catalog import write_catalog
from sharding.writing.shard_writer import write_shard
from stages.distill.config import DistillConfig
from stages.distill.make_object_source import make_object_source
from stages.ingest.sources.toy import SHAPES


def _images(folder: Path, labels: list[str]) -> Path:
    samples = [replace(sample, objects=None) for sample in toy_samples(24, 6)[:2]]
    write_shard(folder / "train-000000.tar", samples, fingerprint={"test": "1"})
    write_catalog(
        folder,
        kind="images",
        splits={"train-000000.tar": "train"},
        metadata={"label_names": labels},
    )
    return folder


def test_objects_are_the_sources_own_boxes(tmp_path: Path) -> None:
    """Oracle: the sample's truth, row by row; a sample without truth has no objects."""
    images = _images(tmp_path, list(SHAPES))
    object_source = make_object_source(DistillConfig(teacher="truth"), tmp_path / "teacher", images)
    sample = toy_samples(24, 6)[0]
    blank = replace(sample, info={k: v for k, v in sample.info.items() if k != "truth"})
    objects, none = object_source.objects([sample, blank])
    truth = sample.info["truth"]
    assert isinstance(objects, np.ndarray) and len(objects) == len(truth["labels"]) > 0
    np.testing.assert_array_equal(objects["box"], np.array(truth["boxes"], np.float32))
    assert [SHAPES[label] for label in objects["label"]] == truth["labels"]
    assert (objects["score"] == 1).all() and (objects["top_score"] == 1).all()
    assert isinstance(none, np.ndarray) and len(none) == 0


def test_a_source_without_boxes_is_refused(tmp_path: Path) -> None:
    """Oracle: the error names the field and what to give."""
    images = _images(tmp_path, [])
    with pytest.raises(ValueError, match="ingest.instances"):
        make_object_source(DistillConfig(teacher="truth"), tmp_path / "teacher", images)
