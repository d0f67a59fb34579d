"""COCO's format: real folders with everything in them that breaks; oracle: counted by hand."""

from __future__ import annotations

import gzip
import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from ingest_corpora import (
    captions_of,
    encoded,
    manifests,
    notes,
    png_header,
    reasons,
    samples,
    write_json,
)

from sharding.format.catalog import Catalog
from stages.ingest.config import IngestConfig
from stages.ingest.run import ingest
from stages.ingest.sources.coco import CocoFiles, CocoSource
from stages.ingest.sources.source import SourceError
from stages.ingest.splits import SplitRule


def run(tmp_path: Path, captions: str, **more: Any) -> Catalog:
    fields = {"heldout_fraction": 0.0, "samples_per_shard": 4, "min_side_px": 2, **more}
    config = IngestConfig(source="coco", root=str(tmp_path / "p"), captions=captions, **fields)
    return ingest(config, seed=0, out=tmp_path / "out")


def open_coco(*, root: str, captions: str) -> CocoSource:
    rule = SplitRule(seed=0, heldout_fraction=0.0)
    return CocoSource([CocoFiles(images=root, captions=captions)], split_rule=rule)


def write_pictures(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    for name, data in pictures.items():
        path = tmp_path / "p" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def test_every_kind_of_breakage_has_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(
        tmp_path,
        {
            "good.jpg": encoded(width=40, height=30),
            "cmyk.jpg": encoded(mode="CMYK"),
            "really_png.jpg": encoded("PNG"),
            "two words.jpg": encoded(),
            "deep/down.JPEG": encoded(),
            "half.jpg": encoded()[:200],
            "empty.jpg": b"",
            "gif.jpg": encoded("GIF"),
            "dot.png": encoded("PNG", width=1, height=1),
            "huge.png": png_header(20_000, 10_000),
            "silent.jpg": encoded(),
            "blank.jpg": encoded(),
            "nobody.jpg": encoded(),
            "nobody2.webp": encoded("WEBP"),
            "notes.txt": b"no picture, not counted",
            ".hidden.jpg": b"neither",
        },
    )
    content = captions_of(
        {
            "good.jpg": [" a cat\n", "", "  \n", "a dog"],
            "cmyk.jpg": ["printed"],
            "really_png.jpg": ["a png"],
            "two words.jpg": ["spaces"],
            "./deep/down.JPEG": ["deep"],
            "half.jpg": ["half"],
            "empty.jpg": ["empty"],
            "gif.jpg": ["gif"],
            "dot.png": ["a dot"],
            "huge.png": ["huge"],
            "gone.jpg": ["gone"],
            "../p/good.jpg": ["a way out"],
            "/etc/hostname": ["another"],
            "silent.jpg": [],
            "blank.jpg": ["", " "],
        }
    )
    content["images"].append({"id": 77, "file_name": "good.jpg"})
    content["images"].append({"id": 1, "file_name": "other.jpg"})
    content["annotations"].append({"id": 1, "image_id": 77, "caption": "the same file"})
    content["annotations"].append({"id": 2, "image_id": 999, "caption": "of nothing"})
    catalog = run(tmp_path, write_json(tmp_path / "c.json", content))

    found = samples(tmp_path / "out", catalog)
    by_name = {sample.info["file_name"]: sample for sample in found.values()}
    assert sorted(by_name) == [
        "./deep/down.JPEG",
        "cmyk.jpg",
        "good.jpg",
        "really_png.jpg",
        "two words.jpg",
    ]
    good = by_name["good.jpg"]
    assert good.key == "good" and good.image == (tmp_path / "p/good.jpg").read_bytes()
    assert good.info == {
        "captions": ["a cat", "a dog"],
        "width": 40,
        "height": 30,
        "image_id": 1,
        "source": "coco",
        "file_name": "good.jpg",
    }
    assert by_name["really_png.jpg"].extension == "png"
    assert by_name["two words.jpg"].key.startswith("two_words-")

    reported = {
        reason for several in reasons(tmp_path / "out", catalog).values() for reason in several
    }
    expected = (
        "broken picture: ",
        "not JPEG, PNG or WebP: it is an empty file",
        "not JPEG, PNG or WebP: it is GIF",
        "too small: 1 x 1 pixels; ingest.min_side_px is 2",
        "too large: 200.0 megapixels; ingest.max_megapixels is 50",
        "missing picture: gone.jpg is not in ingest.root",
        "missing picture: 1 captions are of image id 999",
        "outside of ingest.root: ../p/good.jpg",
        "outside of ingest.root: /etc/hostname",
        "no captions",
        "no captions: all 2 are blank or no text",
        "no caption names this picture: nobody.jpg",
        "no caption names this picture: nobody2.webp",
        "duplicate key: good.jpg after good.jpg",
        "duplicate image id: 1 is already good.jpg",
    )
    for start in expected:
        assert any(reason.startswith(start) for reason in reported), start
    assert len(reported) == len(expected)

    # 17 entries of "images", one unlisted image id, two pictures that nobody names.
    assert sum(manifest.num_input for manifest in manifests(tmp_path / "out", catalog)) == 20
    assert sum(manifest.num_ok for manifest in manifests(tmp_path / "out", catalog)) == 5
    assert notes(tmp_path / "out", catalog) == [
        ("good", "blank caption: number 1"),
        ("good", "blank caption: number 2"),
    ]
    screen = capsys.readouterr().out
    for shown in ("20", "15", "missing picture", "too large", "blank caption"):
        assert shown in screen


def test_an_id_that_comes_twice_with_instances_is_a_duplicate(tmp_path: Path) -> None:
    """Oracle: as without instances: the first picture of the id is kept, with its boxes."""
    write_pictures(tmp_path, {name: encoded(width=40, height=30) for name in ("a.jpg", "b.jpg")})
    captions = captions_of({"a.jpg": ["a"], "b.jpg": ["b"]})
    captions["images"].append({"id": 1, "file_name": "b.jpg"})
    instances = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [{"image_id": 1, "bbox": [1, 2, 10, 20], "category_id": 7}],
    }
    catalog = run(
        tmp_path,
        write_json(tmp_path / "c.json", captions),
        instances=write_json(tmp_path / "i.json", instances),
    )
    assert samples(tmp_path / "out", catalog)["a"].info["truth"]["labels"] == ["cat"]


def test_instances_become_truth(tmp_path: Path) -> None:
    """x, y, width, height become corners; crowds and faulty boxes go with a note, boxes
    of the same picture at another size are scaled, boxes of no picture are counted."""
    write_pictures(tmp_path, {name: encoded(width=40, height=30) for name in ("a.jpg", "b.jpg")})
    write_pictures(tmp_path, {"c.jpg": encoded(width=40, height=30)})
    captions = captions_of({"a.jpg": ["a"], "b.jpg": ["b"], "c.jpg": ["c"]})

    def box(bbox: object, category: object = 7, crowd: int = 0, image: int = 1) -> dict[str, Any]:
        return {"image_id": image, "bbox": bbox, "category_id": category, "iscrowd": crowd}

    instances = {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 40, "height": 30},
            {"id": 2, "file_name": "b.jpg", "width": 400, "height": 300},
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 7, "name": "cat"}],
        "annotations": [
            box([1, 2, 10, 20]),
            {**box([0, 0, 40, 30], category=9), "segmentation": [[0.0] * 8]},
            box([0, 0, 5, 5], crowd=1),
            box([3, 3, 0, 5]),
            box([50, 3, 5, 5]),
            box([3, 3, "5", 5]),
            box([3, 3, float("nan"), 5]),
            box([1, 1, 5, 5], category=1000),
            box([1, 1, 5, 5], category=[7]),
            box([10, 10, 50, 50], image=2),
            {**box([1, 1, 5, 5]), "image_id": [1]},
            box([1, 1, 5, 5], image=55),
        ],
    }
    catalog = run(
        tmp_path,
        write_json(tmp_path / "c.json", captions),
        instances=write_json(tmp_path / "i.json", instances),
    )
    found = samples(tmp_path / "out", catalog)
    assert found["a"].info["truth"] == {
        "boxes": [[1.0, 2.0, 11.0, 22.0], [0.0, 0.0, 40.0, 30.0]],
        "labels": ["cat", "dog"],
        "attributes": [None, None],
    }
    assert found["b"].info["truth"]["boxes"] == [
        [1.0, 1.0, 6.0, 6.0]
    ]  # drawn at ten times the size
    assert "truth" not in found["c"].info  # not in the instances file
    assert catalog.metadata == {
        "label_names": ["cat", "dog"],
        "attribute_names": [],
        "source": "coco",
        "dropped": {"boxes of a picture that the instances file does not list": 2},
        "dropped_examples": {
            "boxes of a picture that the instances file does not list": [
                "annotations[10]: [1]",
                "annotations[11]: 55",
            ]
        },
    }
    kinds = [reason.partition(":")[0] for _, reason in notes(tmp_path / "out", catalog)]
    assert sorted(kinds) == sorted(
        ["box without area", "box outside of the picture", "boxes scaled", "crowd box"]
        + 2 * ["unknown category"]
        + 2 * ["box is not four numbers"]
    )


def test_a_broken_entry_is_counted_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside sound ones; oracle: each break and what it costs, by hand. A broken entry of a picture
    is a failed input, other ones of no picture are dropped by place; a size that is none, and ids
    that mean two pictures, are notes."""
    names = [f"{letter}.jpg" for letter in "abcde"]
    write_pictures(tmp_path, {name: encoded(width=40, height=30) for name in names})
    captions = captions_of({name: ["one", "two"] for name in names})
    captions["images"] += [{"id": None, "file_name": "lost.jpg"}, "text", {"id": 7}]  # type: ignore[list-item]
    captions["annotations"] += [{"caption": "of nobody"}, 7, {"image_id": 1}]  # type: ignore[list-item]
    sizes = [(40, 30), ("wide", 30), (0, 30), (40.0, 30.0), (40, 30)]
    instances = {
        "images": [
            {"id": i, "file_name": name, "width": width, "height": height}
            for i, (name, (width, height)) in enumerate(zip(names, sizes), start=1)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}, "x"],
        "annotations": [
            {"image_id": i, "category_id": 1, "bbox": [1, 2, 10, 20]} for i in range(1, 6)
        ]
        + [None, {"image_id": 1, "category_id": 1}],
    }
    instances["images"][4]["file_name"] = "other.jpg"
    instances["images"] += [{"id": []}, {"id": 1, "width": 9, "height": 9}]
    catalog = run(
        tmp_path,
        write_json(tmp_path / "c.json", captions),
        instances=write_json(tmp_path / "i.json", instances),
    )
    failed = reasons(tmp_path / "out", catalog)
    assert sorted(failed) == ["images-6", "images-7", "lost"]
    assert failed["images-6"][0].startswith("broken entry: images[6] is text; expected an object")
    assert catalog.metadata["label_names"] == ["cat"]
    assert catalog.metadata["dropped"] == {
        "broken entry of captions": 2,
        "broken entry of boxes": 1,
        "broken entry of a picture with boxes": 1,
        "second entry of a picture with boxes": 1,
        "second category of one id": 1,
        "broken category": 1,
    }
    for reason, named in catalog.metadata["dropped_examples"].items():
        assert "[" in named[0], reason
    kinds = sorted((key, r.partition(":")[0]) for key, r in notes(tmp_path / "out", catalog))
    assert kinds == [
        ("a", "blank caption"),
        ("a", "box is not four numbers"),
        ("b", "size unknown"),
        ("c", "size unknown"),
        ("e", "boxes of another picture"),
    ]
    found = samples(tmp_path / "out", catalog)
    assert all(found[key].info["truth"]["boxes"] == [[1, 2, 11, 22]] for key in "abcd")
    assert "truth" not in found["e"].info
    screen = capsys.readouterr().out
    assert "annotations[10]" in screen and "dropped, of no picture" in screen


SOUND = captions_of({"a.jpg": ["a"]})
BOXES = {
    "images": [{"id": 1, "file_name": "a.jpg"}],
    "categories": [],
    "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1], "category_id": 1}],
}


@pytest.mark.parametrize(
    ("captions", "reported"),
    [
        ("no json", "is not JSON"),
        ("", "is not JSON .*: the file is empty; copy or download it again"),
        ("<!DOCTYPE html>\n<html>", "is not JSON .*: it is a web page, .*download it again"),
        (json.dumps(SOUND)[:-9], "is not JSON .*: it is cut short; copy or download it again"),
        ([1, 2], "holds a JSON list; expected an object, .*a file of results names no pictures"),
        ({"photos": []}, "got keys photos; expected a list 'images'"),
        ({**SOUND, "annotations": {}}, 'expected a list "annotations"'),
        ({"images": [], "annotations": []}, '"images" is empty'),
        ({**SOUND, "images": [{"id": 1}]}, r'images\[0\] is .*expected an object with an "id"'),
        ({**SOUND, "images": [{"id": [1], "file_name": "a"}]}, r"images\[0\] is"),
        ({**SOUND, "images": [5]}, r"images\[0\] is 5"),
        ({**SOUND, "annotations": [{"image_id": 1}]}, r"annotations\[0\] is .*\"caption\""),
        ({**SOUND, "annotations": [{"image_id": {}, "caption": "a"}]}, r'has "image_id" \{\}'),
        ({**SOUND, "annotations": [{"image_id": "2", "caption": "a"}]}, "not one of its 1 images"),
        (BOXES, "looks like an instances file, which goes into ingest.instances"),
    ],
)
def test_a_wrong_captions_file_stops_at_once(
    tmp_path: Path, captions: object, reported: str
) -> None:
    write_pictures(tmp_path, {"a.jpg": encoded()})
    path = tmp_path / "c.json"
    path.write_text(captions if isinstance(captions, str) else json.dumps(captions))
    with pytest.raises(SourceError, match=reported):
        run(tmp_path, str(path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("instances", "reported"),
    [
        (SOUND, "got keys annotations, images; expected a list 'categories'"),
        ({**SOUND, "categories": []}, "looks like a captions file, which goes into ingest.capt"),
        ({**BOXES, "images": [{"id": 8}]}, "no image id in common with ingest.captions"),
        ({**BOXES, "images": [{"id": 1, "file_name": "z.jpg"}]}, "image id 1 is 'z.jpg', but 'a.j"),
        ({**BOXES, "images": [{"file_name": "a.jpg"}]}, r"images\[0\] is"),
        ({**BOXES, "categories": ["cat"]}, r"categories\[0\] is cat"),
    ],
)
def test_a_wrong_instances_file_stops_at_once(
    tmp_path: Path, instances: object, reported: str
) -> None:
    write_pictures(tmp_path, {"a.jpg": encoded()})
    captions = write_json(tmp_path / "c.json", SOUND)
    with pytest.raises(SourceError, match=reported):
        run(tmp_path, captions, instances=write_json(tmp_path / "i.json", instances))


def test_wrong_paths_stop_at_once(tmp_path: Path) -> None:
    """Each message says what was got and what was expected."""
    captions = write_json(tmp_path / "c.json", SOUND)
    with pytest.raises(SourceError, match="ingest.root is .*not there; expected the folder"):
        run(tmp_path, captions)
    write_pictures(tmp_path, {"a.jpg": encoded()})
    with pytest.raises(SourceError, match=r"ingest.captions is .*not there.*it holds c.json, p"):
        run(tmp_path, str(tmp_path / "typo.json"))
    with pytest.raises(SourceError, match="ingest.captions is .*a folder"):
        run(tmp_path, str(tmp_path))
    with pytest.raises(SourceError, match="ingest.root is .*which is a file"):
        open_coco(root=captions, captions=captions)
    with pytest.raises(SourceError, match="not one of the 1 pictures.*a.jpg; it holds c.json, p"):
        open_coco(root=str(tmp_path), captions=captions)


def test_only_failures_stop_with_their_reasons(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"a.jpg": b"nothing"})
    with pytest.raises(SourceError, match="no input of the train split gave a sample .*not JPEG"):
        run(tmp_path, write_json(tmp_path / "c.json", SOUND))
    assert not (tmp_path / "out" / "catalog.json").exists()


def test_hostile_names_and_texts_are_written_safely(tmp_path: Path) -> None:
    """Lone surrogates and markup reach manifests, catalog and screen without a crash."""
    write_pictures(tmp_path, {"a.jpg": encoded()})
    (tmp_path / "p" / "\udcff[red].jpg").write_bytes(encoded())
    content = captions_of({"a.jpg": ["half a pair \ud800 [bold]"], "\ud800.jpg": ["x"]})
    content["annotations"].append({"image_id": 1, "caption": None})
    content["images"].append({"id": "\ud800", "file_name": "a\0b.jpg"})
    catalog = run(tmp_path, write_json(tmp_path / "c.json", content))
    assert samples(tmp_path / "out", catalog)["a"].info["captions"] == ["half a pair ? [bold]"]
    assert sum(manifest.num_input for manifest in manifests(tmp_path / "out", catalog)) == 4


def test_files_of_one_stem_in_two_folders_are_two_samples(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"x/1.jpg": encoded(), "y/1.jpg": encoded(), "1.jpg": encoded()})
    content = captions_of({"x/1.jpg": ["a"], "y/1.jpg": ["b"], "1.jpg": ["c"]})
    catalog = run(tmp_path, write_json(tmp_path / "c.json", content))
    assert len(samples(tmp_path / "out", catalog)) == 3


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    """A folder, a pipe, which would wait for a writer, and a link to a device that never ends, each
    named as a picture. Oracle: their reasons; the good one is taken."""
    write_pictures(tmp_path, {"good.jpg": encoded()})
    (tmp_path / "p/folder.jpg").mkdir()
    os.mkfifo(tmp_path / "p/pipe.jpg")
    (tmp_path / "p/device.jpg").symlink_to("/dev/zero")
    (tmp_path / "p/loop.jpg").symlink_to("loop.jpg")
    names = ("good", "folder", "pipe", "device", "loop")
    content = captions_of({f"{name}.jpg": ["a"] for name in names})
    catalog = run(tmp_path, write_json(tmp_path / "c.json", content))
    found = {key: several[0] for key, several in reasons(tmp_path / "out", catalog).items()}
    assert found == {
        "folder": "unreadable picture: folder.jpg: Is a directory",
        "pipe": "unreadable picture: pipe.jpg: not a file: it is a pipe or a device",
        "device": "unreadable picture: device.jpg: not a file: it is a pipe or a device",
        "loop": "unreadable picture: loop.jpg: Too many levels of symbolic links",
    }
    assert list(samples(tmp_path / "out", catalog)) == ["good"]


def test_json_that_readers_take_differently(tmp_path: Path) -> None:
    """Oracle: an id that is not finite is a broken entry; a list that comes twice, of which Python
    would take the last, and a compressed file are errors that say so."""
    write_pictures(tmp_path, {"a.jpg": encoded(), "b.jpg": encoded()})
    text = json.dumps(captions_of({"a.jpg": ["one"], "b.jpg": ["two"]}))
    path = tmp_path / "c.json"
    path.write_text(text.replace('"id": 1,', '"id": NaN,', 1))
    catalog = run(tmp_path, str(path))
    assert list(samples(tmp_path / "out", catalog)) == ["b"]
    assert any("broken entry: images[0]" in r for r in reasons(tmp_path / "out", catalog)["a"])
    path.write_text(text[:-1] + ', "annotations": []}')
    with pytest.raises(SourceError, match="key 'annotations' comes twice"):
        run(tmp_path, str(path))
    path.write_bytes(gzip.compress(text.encode()))
    with pytest.raises(SourceError, match="compressed by gzip; unpack it by gzip -d"):
        run(tmp_path, str(path))


@pytest.mark.parametrize("written", [str, float, lambda number: f"{number:04d}", int])
def test_ids_are_matched_by_value_whatever_their_type(tmp_path: Path, written: Any) -> None:
    """Exporters of labelling tools write 17 as "17". Oracle: every box is at its picture; where all
    are crowds, none can be used, and the error counts them."""
    names = [f"{number}.jpg" for number in range(3)]
    write_pictures(tmp_path, {name: encoded(width=40, height=30) for name in names})
    content = captions_of({name: ["a"] for name in names})
    boxes = {
        "images": content["images"],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [
            {"image_id": written(i + 1), "category_id": written(7), "bbox": [i, 2, 5, 5]}
            for i in range(3)
        ],
    }
    captions, instances = tmp_path / "c.json", tmp_path / "i.json"
    write_json(captions, content)
    catalog = run(tmp_path, str(captions), instances=write_json(instances, boxes))
    found = samples(tmp_path / "out", catalog)
    assert [found[str(i)].info["truth"]["boxes"] for i in range(3)] == [
        [[i, 2, i + 5, 7]] for i in range(3)
    ]
    for one in boxes["annotations"]:
        one["iscrowd"] = written(0)
    catalog = run(tmp_path, str(captions), instances=write_json(instances, boxes))
    assert len(samples(tmp_path / "out", catalog)["0"].info["truth"]["boxes"]) == 1
    for one in boxes["annotations"]:
        one["iscrowd"] = written(1)
    with pytest.raises(SourceError, match=r"none of its 3 boxes can be used \(3 x crowd box\)"):
        run(tmp_path, str(captions), instances=write_json(instances, boxes))


@pytest.mark.parametrize(
    ("said", "there"),
    [
        (unicodedata.normalize("NFC", "café.jpg"), unicodedata.normalize("NFD", "café.jpg")),
        (unicodedata.normalize("NFD", "café.jpg"), unicodedata.normalize("NFC", "café.jpg")),
        ("a\\b.jpg", "a/b.jpg"),
    ],
)
def test_names_are_found_as_other_systems_spell_them(said: str, there: str, tmp_path: Path) -> None:
    """macOS writes accents as letters of their own, Windows parts folders by backslashes. Oracle:
    one sample, and no file that no caption names."""
    write_pictures(tmp_path, {there: encoded()})
    catalog = run(tmp_path, write_json(tmp_path / "c.json", captions_of({said: ["a"]})))
    assert len(samples(tmp_path / "out", catalog)) == 1
    assert not [f for manifest in manifests(tmp_path / "out", catalog) for f in manifest.failures]
