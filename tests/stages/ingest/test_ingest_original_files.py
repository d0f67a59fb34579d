"""Flickr30k Entities and Visual Genome in their original files; oracle: worked out by hand, and the
photographs' own files beside what their maker derived from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ingest_corpora import encoded, notes, reasons, samples, write_json

from sharding.format.catalog import Catalog
from stages.annotations.flickr30k_entities import parse_boxes
from stages.ingest.config import IngestConfig
from stages.ingest.run import ingest, open_source
from stages.ingest.sources.flickr30k_entities import parse_sentences
from stages.ingest.sources.source import Picture, SourceError

PHOTOS = Path(__file__).resolve().parents[4] / "shared" / "photos"


def run(tmp_path: Path, source: str, **fields: Any) -> Catalog:
    config = IngestConfig(
        source=source,
        root=str(tmp_path / "p"),
        annotations=str(tmp_path),
        min_side_px=2,
        **{"heldout_fraction": 0.0, **fields},
    )
    return ingest(config, seed=0, out=tmp_path / "out")


XML = """<annotation><size><width>{}</width><height>60</height></size>
<object><name>7</name><name>8</name><bndbox><xmin>10</xmin><ymin>20</ymin><xmax>30</xmax>
<ymax>40</ymax></bndbox></object>
<object><name>7</name><bndbox><xmin>50</xmin><ymin>0</ymin><xmax>80</xmax><ymax>60</ymax></bndbox>
</object>
<object><name>9</name><scene>1</scene><nobndbox>0</nobndbox></object>
<object><name>9</name><bndbox><xmin>x</xmin></bndbox></object></annotation>"""
TEXT = """[/EN#7/people Two men] and [/EN#8/people/scene a man] on [/EN#9/scene grass] .

[/EN#7/people Men [odd
"""


def test_entities_come_with_phrases_and_scaled_boxes(tmp_path: Path) -> None:
    """The pictures are half as large as those that boxes were drawn on; lists say the splits; a
    phrase has all boxes of its chain; whatever is broken is counted and named."""
    for name in ("Annotations", "Sentences", "p"):
        (tmp_path / name).mkdir()
    for number in ("1", "2", "3", "4"):
        (tmp_path / "p" / f"{number}.jpg").write_bytes(encoded(width=40, height=30))
        (tmp_path / "Annotations" / f"{number}.xml").write_text(XML.format(80))
        (tmp_path / "Sentences" / f"{number}.txt").write_text(TEXT)
    (tmp_path / "Annotations" / "2.xml").write_text(XML.format(200))
    (tmp_path / "Annotations" / "3.xml").write_text("<annotation>")
    (tmp_path / "Sentences" / "4.txt").write_text("\n")
    (tmp_path / "train.txt").write_text("1\n2\n4\n5\n")
    (tmp_path / "val.txt").write_text("3\n")
    catalog = run(tmp_path, "flickr30k-entities")
    found = samples(tmp_path / "out", catalog)
    assert found["1"].info["captions"] == ["Two men and a man on grass .", "[/EN#7/people Men [odd"]
    truth = found["1"].info["truth"]
    assert truth["boxes"] == [[5, 10, 15, 20], [25, 0, 40, 30]]
    assert truth["labels"] == ["people", "people"]
    assert [(p["start"], p["end"], p["objects"]) for p in truth["phrases"][0]] == [
        (0, 7, [0, 1]),
        (12, 17, [0]),
        (21, 26, []),
    ]
    assert {s.split: s.num_ok for s in catalog.shards} == {"heldout": 1, "train": 2}
    assert "truth" not in found["2"].info and "truth" not in found["3"].info
    assert reasons(tmp_path / "out", catalog) == {
        "4": ["broken sentences: no caption in it"],
        "5": ["no sentences: train lists 5"],
    }
    reported = {reason.partition(":")[0] for _, reason in notes(tmp_path / "out", catalog)}
    assert reported == {
        "boxes scaled",
        "truth dropped",
        "broken annotations",
        "broken phrase",
        "box is not four numbers",
    }


def test_broken_entities_are_counted_and_named(tmp_path: Path) -> None:
    """Oracle: a break a picture, by hand. An id of two lists is not trained on; what only one of
    the two files has is noted; pictures without lists of splits are refused unless allowed."""
    for name in ("Annotations", "Sentences", "p", "p/again"):
        (tmp_path / name).mkdir()
    for number in "12345":
        (tmp_path / "p" / f"{number}.jpg").write_bytes(encoded(width=80, height=60))
        (tmp_path / "Annotations" / f"{number}.xml").write_text(XML.format(80))
        (tmp_path / "Sentences" / f"{number}.txt").write_text("[/EN#7/people Two men] and 8 .")
    (tmp_path / "p/again/1.png").write_bytes(encoded("PNG"))
    (tmp_path / "Annotations" / "2.xml").unlink()
    (tmp_path / "Sentences" / "3.txt").write_text("[/EN#77/people Two men] [/EN#0/notvisual it] .")
    (tmp_path / "Sentences" / "4.txt").write_bytes(b"[/EN#7/people Two m\xffn] .")
    (tmp_path / "Annotations" / "9.xml").write_text(XML.format(80))
    (tmp_path / "Sentences" / "5.txt").unlink()
    with pytest.raises(SourceError, match="4 pictures of Flickr30k .*expected train.txt"):
        run(tmp_path, "flickr30k-entities")
    (tmp_path / "train.txt").write_text("1\n2\n3\n4\n")
    (tmp_path / "test.txt").write_text("4.jpg\n")
    catalog = run(tmp_path, "flickr30k-entities")
    assert {s.split: s.num_ok for s in catalog.shards} == {"test": 1, "train": 3}
    assert catalog.metadata["dropped_examples"] == {
        "second split of a picture": ["4: train after test"]
    }
    assert reasons(tmp_path / "out", catalog) == {
        "1": ["second picture of an id: again/1.png after 1.jpg"],
        "5": ["no sentences of this picture: 5.jpg"],
        "9": ["no sentences: there is only Annotations/9.xml"],
    }
    noted = [(key, reason) for key, reason in notes(tmp_path / "out", catalog)]
    assert ("2", "no annotations: Annotations/2.xml is not there") in noted
    assert ("3", "phrase that the annotations do not have: chain 77") in noted
    assert ("3", "box of no phrase: chain 7") in noted
    assert ("4", "sentences are not UTF-8: 1 characters replaced") in noted


def test_hostile_annotations_are_refused() -> None:
    """No entity is expanded, no size beyond reason taken."""
    for text in ("<!DOCTYPE a [<!ENTITY b 'c'>]><a/>", "<a><size/></a>", "no xml"):
        with pytest.raises(ValueError):
            parse_boxes(text, print)
    with pytest.raises(ValueError):
        parse_sentences("")


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs the photographs beside the project")
def test_original_entities_say_what_the_derived_phrases_say() -> None:
    """Oracle: phrases_dev.jsonl, derived from the same files by whoever made the data set: the same
    characters, chains and types, and as many boxes."""
    config = IngestConfig(
        source="flickr30k-entities",
        root=str(PHOTOS / "images" / "dev"),
        annotations=str(PHOTOS / "entities"),
        allow_evaluation_pictures=True,
    )
    found = {i.key: i for i in open_source(config, seed=0).pictures() if isinstance(i, Picture)}
    lines = (PHOTOS / "phrases_dev.jsonl").read_text().splitlines()
    assert len(found) == len(lines) == 400
    for line in map(json.loads, lines):
        truth = found[str(line["image_id"])].truth
        assert truth is not None
        own = [
            [[p["start"], p["end"], int(p["chain"]), p["type"], len(p["objects"])] for p in several]
            for several in truth["phrases"]
        ]
        assert own == [[[*p[:4], len(p[4])] for p in several] for several in line["phrases"]]


def visual_genome(tmp_path: Path) -> None:
    """Three pictures, the second of COCO; a region without a box, an object without a name."""
    for number in (1, 2, 3):
        folder = tmp_path / "p" / ("VG_100K" if number < 3 else "VG_100K_2")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(encoded(width=40, height=30))
    region = {"phrase": " the red cat ", "x": 1, "y": 2, "width": 10, "height": 9}
    regions = [region, {"phrase": "a", "x": None}, {"phrase": "", "x": 1}]
    write_json(
        tmp_path / "region_descriptions.json",
        [
            {"id": 1, "regions": regions},
            {"id": 2, "regions": [region]},
            {"id": 9, "regions": []},
            5,
        ],
    )
    write_json(
        tmp_path / "image_data.json",
        [
            {"image_id": number, "width": 40, "height": 30, "coco_id": 42 if number == 2 else None}
            for number in (1, 2, 3)
        ],
    )
    box = {"x": 3, "y": 3, "w": 6, "h": 6}
    write_json(
        tmp_path / "objects.json",
        [
            {
                "image_id": 1,
                "objects": [
                    {"object_id": 11, "names": ["Cat"], **box},
                    {"object_id": 12, "names": [], **box},
                    {"object_id": 13, "names": ["rarity"], **box},
                ],
            },
            {"image_id": 2, "objects": [{"object_id": 14, "names": ["cat"], **box}]},
        ],
    )
    write_json(
        tmp_path / "attributes.json",
        [
            {
                "image_id": 1,
                "attributes": [{"object_id": 11, "attributes": ["red "], "names": ["cat"]}],
            },
        ],
    )


def test_visual_genome_regions_are_captions_with_boxes(tmp_path: Path) -> None:
    """A region is a caption and its phrase is all of it; objects have label and attribute; pictures
    of COCO need a list of those that others evaluate on."""
    visual_genome(tmp_path)
    with pytest.raises(SourceError, match="has 1 pictures of COCO"):
        run(tmp_path, "visual-genome")
    karpathy = {"filename": "x.jpg", "cocoid": 42, "split": "test", "sentences": []}
    lists = write_json(tmp_path / "k.json", {"images": [karpathy]})
    catalog = run(tmp_path, "visual-genome", exclude=[lists], vg_num_labels=1)
    (sample,) = samples(tmp_path / "out", catalog).values()
    assert sample.info["captions"] == ["the red cat", "a"]
    assert sample.info["truth"] == {
        "boxes": [[3, 3, 9, 9]],
        "labels": ["cat"],
        "attributes": ["red"],
        "phrases": [[{"start": 0, "end": 11, "boxes": [[1, 2, 11, 11]]}], []],
    }
    assert catalog.metadata["label_names"] == ["cat"] and catalog.metadata["attribute_names"] == [
        "red"
    ]
    assert reasons(tmp_path / "out", catalog) == {
        "2": ["evaluation picture: 2.jpg is in test of k.json"],
        "3": ["no caption names this picture: VG_100K_2/3.jpg"],
        "9": ["unknown picture: image_data.json does not list it"],
    }
    assert catalog.metadata["dropped"] == {
        "entries of region_descriptions.json that are not objects": 1,
        "objects without a name or a box": 1,
    }


def test_broken_entries_of_visual_genome_are_named(tmp_path: Path) -> None:
    """Oracle: by hand. A size that is none is noted, an id of COCO written as text is one."""
    visual_genome(tmp_path)
    images = json.loads((tmp_path / "image_data.json").read_text())
    images[0]["width"] = "wide"
    images[1]["coco_id"] = "42"
    write_json(tmp_path / "image_data.json", images)
    attributes = [{"image_id": 1, "attributes": [{"attributes": ["red"]}, 5]}]
    write_json(tmp_path / "attributes.json", attributes)
    with pytest.raises(SourceError, match="has 1 pictures of COCO"):
        run(tmp_path, "visual-genome")
    (tmp_path / "coco.txt").write_text("42\n")
    catalog = run(tmp_path, "visual-genome", exclude=[str(tmp_path / "coco.txt")])
    assert reasons(tmp_path / "out", catalog)["2"] == ["evaluation picture: 2.jpg is in coco.txt"]
    assert any(reason.startswith("size unknown") for _, reason in notes(tmp_path / "out", catalog))
    assert catalog.metadata["dropped"]["attributes without the id of an object"] == 2
    assert catalog.metadata["dropped_examples"]["objects without a name or a box"][0].startswith(
        "1: {'object_id': 12"
    )


def test_a_list_that_is_cut_short_says_so(tmp_path: Path) -> None:
    """After how many entries, and in which file."""
    visual_genome(tmp_path)
    path = tmp_path / "objects.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(SourceError, match="objects.json.: cut short or damaged after 1 entries"):
        run(tmp_path, "visual-genome")
