"""NLVR: a corpus made by hand in its layout, and the real one where it is at hand.

Oracle: the layout's rules worked out on paper, and the colours of the real pixels.
"""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from ingest_corpora import encoded, manifests, notes, reasons, samples
from PIL import Image

from sharding.format.catalog import Catalog
from stages.ingest.config import IngestConfig
from stages.ingest.run import ingest
from stages.ingest.sources.nlvr import NlvrSource
from stages.ingest.sources.source import Picture, SourceError

REAL = Path(__file__).resolve().parents[4] / "shared" / "nlvr"
RGB = {"black": (0, 0, 0), "yellow": (255, 255, 0), "blue": (0, 153, 255)}

BOXES = [
    [{"x_loc": 10, "y_loc": 20, "size": 30, "type": "square", "color": "Black"}],
    [{"x_loc": 40, "y_loc": 50, "size": 10, "type": "circle", "color": "#0099ff"}],
    [{"x_loc": 70, "y_loc": 80, "size": 20, "type": "triangle", "color": "Yellow"}],
]


def example(identifier: str, **fields: Any) -> dict[str, Any]:
    return {
        "sentence": f"sentence {identifier.partition('-')[0]}",
        "label": "true",
        "identifier": identifier,
        "directory": "3",
        "structured_rep": BOXES,
        **fields,
    }


def write_corpus(folder: Path, split: str, examples: list[dict[str, Any]]) -> None:
    images = folder / split / "images" / "3"
    images.mkdir(parents=True)
    for entry in examples:
        for order in range(6):
            name = f"{split}-{entry['identifier']}-{order}.png"
            (images / name).write_bytes(encoded("PNG", width=400, height=100))
    lines = "\n".join(map(json.dumps, examples))
    (folder / split / f"{split}.json").write_text(lines + "\n")


def run(root: Path, out: Path, **fields: Any) -> Catalog:
    fields = {"heldout_fraction": 0.0, **fields}
    return ingest(IngestConfig(source="nlvr", root=str(root), **fields), seed=0, out=out)


def test_boxes_stand_where_each_order_shows_them(tmp_path: Path) -> None:
    """Order 3 is (1, 2, 0): slots at x = 0, 150, 300 show boxes 1, 2, 0."""
    write_corpus(tmp_path / "c", "dev", [example("7-0", label="false")])
    found = samples(tmp_path / "out", run(tmp_path / "c", tmp_path / "out"))
    assert sorted(found) == [f"dev-7-0-{order}" for order in range(6)]
    assert found["dev-7-0-3"].info == {
        "captions": ["sentence 7"],
        "width": 400,
        "height": 100,
        "image_id": "dev-7-0-3",
        "source": "nlvr",
        "identifier": "7-0",
        "order": 3,
        "corpus_split": "dev",
        "truth": {
            "boxes": [
                [40.0, 50.0, 50.0, 60.0],
                [220.0, 80.0, 240.0, 100.0],
                [310.0, 20.0, 340.0, 50.0],
            ],
            "labels": ["circle", "triangle", "square"],
            "attributes": ["blue", "yellow", "black"],
            "captions": [False],
        },
    }
    assert found["dev-7-0-0"].info["truth"]["boxes"][0] == [10.0, 20.0, 40.0, 50.0]


def test_what_is_broken_is_counted(tmp_path: Path) -> None:
    """7 examples in 2 orders: 14 inputs. A lost picture, a broken one, a blank sentence (2), a
    second example of one identifier (2); an object nobody knows is noted twice."""
    odd = [[{**BOXES[0][0], "color": "pink"}], *BOXES[1:]]
    examples = [example(f"{n}-0") for n in range(4)]
    examples += [example("4-0", sentence=" "), example("0-0"), example("5-0", structured_rep=odd)]
    write_corpus(tmp_path / "c", "train", examples)
    images = tmp_path / "c/train/images/3"
    (images / "train-1-0-1.png").unlink()
    (images / "train-2-0-0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    catalog = run(tmp_path / "c", tmp_path / "out", nlvr_num_orders=2)
    reported = reasons(tmp_path / "out", catalog)
    missing = "missing picture: train/images/3/train-1-0-1.png is not in ingest.root"
    assert reported["train-1-0-1"] == [missing]
    assert reported["train-2-0-0"][0].startswith("broken picture")
    assert reported["train-4-0-0"] == ["no captions: all 1 are blank or no text"]
    assert reported["train-0-0-0"][0].startswith("duplicate key: train/images/3/train-0-0-0.png")
    assert sum(map(len, reported.values())) == 6
    assert sum(manifest.num_input for manifest in manifests(tmp_path / "out", catalog)) == 14
    kinds = [(key, reason.partition(":")[0]) for key, reason in notes(tmp_path / "out", catalog)]
    assert kinds == [("train-5-0-0", "unknown object"), ("train-5-0-1", "unknown object")]


def test_a_presentation_is_held_out_as_a_whole(tmp_path: Path) -> None:
    """Across examples, orders and the corpus's own splits; the share is about the one asked for."""
    examples = [example(f"{n}-{m}") for n in range(200) for m in range(2)]
    write_corpus(tmp_path / "nlvr", "dev", [])
    (tmp_path / "nlvr/dev/dev.json").write_text("\n".join(map(json.dumps, examples)))
    (tmp_path / "nlvr/dev/images/3/dev-0-0-0.png").write_bytes(encoded("PNG"))
    write_corpus(tmp_path / "nlvr", "train", [example("5-3")])
    source = NlvrSource(root=str(tmp_path), num_orders=2, seed=1, heldout_fraction=0.3)
    splits: dict[str, set[str]] = {}
    for picture in source.pictures():
        assert isinstance(picture, Picture)
        splits.setdefault(picture.fields["identifier"].split("-")[0], set()).add(picture.split)
    assert all(len(of_group) == 1 for of_group in splits.values()) and len(splits) == 200
    assert 40 <= sum(of_group == {"heldout"} for of_group in splits.values()) <= 80


@pytest.mark.parametrize(
    ("line", "reported"),
    [
        ("{", "line 1 is not an example in JSON"),
        ("[]", "line 1: got a JSON list"),
        ('{"sentence": "a", "Left": "b"}', "line 1: label, identifier, .*NLVR2 is another corpus"),
        (json.dumps(example("1-0", label="maybe")), "line 1: label is 'maybe'"),
        (json.dumps(example("1-0", structured_rep=[[], []])), "line 1: structured_rep is"),
    ],
)
def test_a_wrong_line_is_counted_and_a_wrong_file_stops(
    tmp_path: Path, line: str, reported: str
) -> None:
    """A file of wrong lines alone stops at once; beside a sound line a wrong one is named."""
    write_corpus(tmp_path / "c", "dev", [])
    file = tmp_path / "c/dev/dev.json"
    file.write_text(line + "\n")
    with pytest.raises(SourceError, match=reported):
        run(tmp_path / "c", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write_corpus(tmp_path / "d", "dev", [example("0-0")])
    with open(tmp_path / "d/dev/dev.json", "a", encoding="utf-8") as lines:
        lines.write(line + "\n")
    source = NlvrSource(root=str(tmp_path / "d"), num_orders=1, seed=0, heldout_fraction=0.0)
    assert len(source.pictures()) == 1 and dict(source.dropped) == {"broken line of examples": 1}
    assert "dev.json, line 2" in source.dropped.examples["broken line of examples"][0]


def test_wrong_paths_stop_at_once(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="ingest.root is .*not there; expected the NLVR corpus"):
        run(tmp_path / "c", tmp_path / "out")
    with pytest.raises(SourceError, match=r"it is empty\); expected the NLVR corpus.*git clone"):
        run(tmp_path, tmp_path / "out")
    write_corpus(tmp_path / "c", "dev", [])
    with pytest.raises(SourceError, match="dev.json is there, but not one picture"):
        run(tmp_path / "c", tmp_path / "out")


@pytest.mark.skipif(not REAL.is_dir(), reason="the NLVR corpus is not beside this repository")
def test_real_boxes_have_the_colour_they_claim() -> None:
    """In 40 real pictures of random orders, the pixel at every object's middle is of its colour."""
    source = NlvrSource(root=str(REAL), num_orders=6, seed=0, heldout_fraction=0.1)
    pictures = source.pictures()
    assert len(pictures) == 989 * 6
    for picture in random.Random(0).sample(list(pictures), 40):
        assert isinstance(picture, Picture) and picture.truth is not None
        pixels = Image.open(io.BytesIO(picture.read())).convert("RGB")
        for (x0, y0, x1, y1), colour in zip(picture.truth["boxes"], picture.truth["attributes"]):
            middle = pixels.getpixel((int(x0 + x1) // 2, int(y0 + y1) // 2))
            assert middle == RGB[colour], (picture.key, colour)
