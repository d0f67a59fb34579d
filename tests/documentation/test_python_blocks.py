"""The Python of docs/shards.md runs as it stands."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boxless import Sample, object_dtype, write_catalog, write_shard

ROOT = Path(__file__).resolve().parents[2]


def write_object_shard(folder: Path, num_samples: int) -> None:
    """A folder with one object shard of split train and its catalog."""
    picture = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(picture, "JPEG")
    objects = np.zeros(1, object_dtype(feature_size=4, num_top=1, attributes=False))
    objects["box"] = (0, 0, 10, 10)
    info = {"captions": ["red"], "width": 64, "height": 48, "image_id": 1, "phrases": [[]]}
    samples = [
        Sample(
            key=f"{n:04d}", image=picture.getvalue(), extension="jpg", info=info, objects=objects
        )
        for n in range(num_samples)
    ]
    folder.mkdir(parents=True)
    write_shard(folder / "train-000000.tar", samples, fingerprint={})
    write_catalog(folder, kind="objects", splits={"train-000000.tar": "train"}, metadata={})


def test_the_python_of_the_guide_to_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: both blocks, in order, print the four samples of the folder that they name."""
    page = (ROOT / "docs/shards.md").read_text("utf-8")
    write_object_shard(tmp_path / "runs/toy/objects", num_samples=4)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(block, names)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 + 4
    assert names["position"] == 2
    assert printed[-1] == "(64, 48) ['red']"
