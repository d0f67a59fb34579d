"""`boxless sizing`. Oracle: the size of a shard as it is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.cli.main import main
from pipeline.cli.sizing import Sizing
from sharding.format.manifest import manifest_path
from sharding.format.schema import Sample, object_dtype
from sharding.writing.shard_writer import write_shard


@pytest.mark.parametrize("with_objects", [False, True])
def test_size_of_a_shard(tmp_path: Path, with_objects: bool) -> None:
    """Samples with captions of 60 characters and similarities of 5 digits: within a tenth, tar and
    manifest, though the estimate knows neither keys nor texts."""
    sizing = Sizing(pictures=20, picture_bytes=30_000, objects=10, feature_size=512)
    objects = np.zeros(10, object_dtype(feature_size=512, num_top=5, attributes=True))
    phrase = {"text": "a brown dog", "start": 10, "end": 21, "similarity": [0.12345] * 10}
    info = {"captions": ["x" * 57] * 5, "width": 640, "height": 480, "image_id": 123456}
    info |= {"source": "coco", "file_name": "000000123456.jpg"}
    if with_objects:
        info["phrases"] = [[phrase, phrase]] * 5
    samples = [
        Sample(
            key=f"coco-{number:012d}",
            image=bytes(30_000),
            extension="jpg",
            info=info,
            objects=objects if with_objects else None,
        )
        for number in range(20)
    ]
    tar = tmp_path / "train-000000.tar"
    write_shard(tar, samples, fingerprint={})
    expected = 20 * sizing.sample_bytes(with_objects=with_objects)
    assert tar.stat().st_size == pytest.approx(expected, rel=0.1)
    assert manifest_path(tar).stat().st_size == pytest.approx(20 * 170, rel=0.25)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: a hundred pictures of a megabyte, with a header, padding and a json, are 100 MB."""
    options = ["--picture-bytes", "1000000", "--samples-per-shard", "30"]
    assert main(["sizing", "--pictures", "100", *options]) == 0
    printed = capsys.readouterr().out
    assert "4 of 30 samples" in printed and "100 MB" in printed
    assert main(["sizing", "--pictures", "0"]) == 2


def test_the_table_of_the_page_is_what_the_command_prints() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/sizing.md").read_text("utf-8")
    columns = [dict(Sizing(pictures=n).rows()) for n in (100_000, 5_000_000, 400_000_000)]
    for what in columns[0]:
        assert f"| {what} | " + " | ".join(column[what] for column in columns) + " |" in page
