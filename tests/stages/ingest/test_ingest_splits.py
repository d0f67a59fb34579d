"""Fixed splits, phrases with several boxes, Karpathy's JSON, and pictures that others evaluate on;
oracle: counted by hand in corpora of a few pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ingest_corpora import captions_of, encoded, notes, reasons, samples, write_json

from sharding.format.catalog import Catalog
from stages.ingest.config import IngestConfig
from stages.ingest.evaluation_pictures import identities
from stages.ingest.run import ingest
from stages.ingest.sources.source import SourceError


def run(tmp_path: Path, **fields: Any) -> Catalog:
    config = IngestConfig(source="coco", root=str(tmp_path), min_side_px=2, **fields)
    return ingest(config, seed=0, out=tmp_path / "out")


def splits(catalog: Catalog, tmp_path: Path) -> dict[str, set[str]]:
    """{split: keys}."""
    return {
        shard.split: {
            sample.key
            for sample in samples(tmp_path / "out", catalog).values()
            if sample.key in _keys(tmp_path / "out" / shard.tar)
        }
        for shard in catalog.shards
    }


def _keys(tar: Path) -> set[str]:
    from sharding.format.manifest import read_manifest

    return {entry.key for entry in read_manifest(tar).samples}


def write_split(tmp_path: Path, word: str, pictures: dict[str, bytes]) -> None:
    """Pictures, captions, instances (two boxes a picture, the first a crowd) and phrases."""
    folder = tmp_path / "images" / word
    folder.mkdir(parents=True)
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    write_json(tmp_path / f"captions_{word}.json", captions_of({n: ["two cats"] for n in pictures}))
    ids = range(1, len(pictures) + 1)
    write_json(
        tmp_path / f"instances_{word}.json",
        {
            "images": [{"id": str(i), "width": 40, "height": 30} for i in ids],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [
                {"image_id": str(i), "category_id": 1, "bbox": box, "iscrowd": crowd}
                for i in ids
                for box, crowd in (([0, 0, 9, 9], 1), ([1, 1, 5, 5], 0), ([20, 9, 5, 5], 0))
            ],
        },
    )
    lines = [json.dumps({"image_id": i, "phrases": [[[0, 8, 7, "animals", [1, 2]]]]}) for i in ids]
    (tmp_path / f"phrases_{word}.jsonl").write_text("\n".join(["{no json", *lines]))


PATTERNS: dict[str, Any] = {
    "images": "{root}/images/{split}",
    "captions": "{root}/captions_{split}.json",
    "instances": "{root}/instances_{split}.json",
    "phrases": "{root}/phrases_{split}.jsonl",
}


def test_each_split_has_files_of_its_own(tmp_path: Path) -> None:
    """No picture is drawn into a split; phrases keep all their boxes, by the rows that are left
    when the crowd is gone; a picture of two splits is held out; broken lines are counted."""
    same = encoded(seed=1)
    write_split(tmp_path, "train", {"a.jpg": encoded(seed=2), "b.jpg": same})
    write_split(tmp_path, "dev", {"b.jpg": same, "c.jpg": encoded(seed=3)})
    write_split(tmp_path, "final", {"a.jpg": encoded(seed=4, width=41)})
    words = {"train": "train", "dev": "dev", "test": "final"}
    catalog = run(tmp_path, splits=words, **PATTERNS)
    found = splits(catalog, tmp_path)
    assert found == {"heldout": {"b", "c"}, "test": {"a"}, "train": {"train-a"}}
    truth = samples(tmp_path / "out", catalog)["c"].info["truth"]
    assert truth["boxes"] == [[1, 1, 6, 6], [20, 9, 25, 14]]
    assert truth["phrases"] == [
        [{"start": 0, "end": 8, "chain": "7", "type": "animals", "objects": [0, 1]}]
    ]
    assert reasons(tmp_path / "out", catalog) == {"b": ["duplicate key: b.jpg after b.jpg"]}
    assert catalog.metadata["dropped"] == {"broken line of phrases": 3}


def test_splits_that_cannot_be_meant_are_refused() -> None:
    """Each message names the field and what was expected."""
    for fields, reported in (
        ({"captions": "c_{split}.json"}, "ingest.splits is empty"),
        ({"captions": "c.json", "splits": {"dev": "dev"}}, "expected train and perhaps"),
        ({"captions": "c.json", "splits": {"train": "a", "val": "a"}}, "each in one split"),
        ({"captions": "c.json", "splits": {"train": "a", "dev": "b", "val": "c"}}, "each once"),
        ({"captions": "c.json", "images": "{split}", "splits": {"train": "a"}}, "captions has not"),
        ({"captions": "c.json", "phrases": "p.jsonl"}, "ingest.instances is not"),
    ):
        with pytest.raises(ValueError, match=reported):
            IngestConfig(source="coco", root=".", **fields)


def karpathy(tmp_path: Path, *, coco: bool = False) -> str:
    """Six pictures in Karpathy's layout, one of them missing and one without a sentence."""
    images = []
    for i, split in enumerate(("train", "restval", "val", "test", "train", "train")):
        name = f"COCO_val2014_{i:012d}.jpg" if coco else f"100{i}.jpg"
        if i != 4:
            (tmp_path / name).write_bytes(encoded(seed=i))
        sentences = [{"raw": f"a {i}"}, {"tokens": []}] if i != 5 else []
        image = {"filename": name, "filepath": "gone", "split": split, "sentences": sentences}
        images.append({**image, "imgid": i, **({"cocoid": i} if coco else {})})
    return write_json(tmp_path / "k.json", {"images": images, "dataset": "x"})


def test_karpathy_json_says_the_splits(tmp_path: Path) -> None:
    """restval is trained on, val is held out; sentences without text, missing pictures and pictures
    without sentences are counted; boxes are found by file name, as ids count something else."""
    instances = {
        "images": [{"id": 77, "file_name": "1002.jpg"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": 77, "category_id": 1, "bbox": [0, 0, 9, 9]}],
    }
    path = write_json(tmp_path / "i.json", instances)
    catalog = run(tmp_path, captions=karpathy(tmp_path), instances=path)
    found = splits(catalog, tmp_path)
    assert found == {"heldout": {"1002"}, "test": {"1003"}, "train": {"1000", "1001"}}
    reported = {
        reason.partition(":")[0]
        for r in reasons(tmp_path / "out", catalog).values()
        for reason in r
    }
    assert reported == {"missing picture", "no captions"}
    assert len(notes(tmp_path / "out", catalog)) == 4
    assert samples(tmp_path / "out", catalog)["1002"].info["truth"]["labels"] == ["cat"]


def test_broken_entries_of_karpathys_json_are_counted(tmp_path: Path) -> None:
    """Beside sound ones, each named by its file or its place. A picture in two splits is not
    trained on; oracle: which break stands where."""
    path = tmp_path / "k.json"
    content = json.loads(Path(karpathy(tmp_path)).read_text())
    sound = content["images"][0]
    content["images"].insert(0, "text")
    content["images"] += [
        {**sound, "filename": "no_split.jpg", "split": None},
        {**sound, "filename": None},
        {**sound, "filename": "no_list.jpg", "sentences": "text"},
        {**sound, "filename": "odd.jpg", "split": "strange"},
        {**content["images"][3], "split": "train"},
        dict(sound),
    ]
    write_json(path, content)
    catalog = run(tmp_path, captions=str(path))
    assert splits(catalog, tmp_path)["heldout"] == {"1002"}
    failed = [
        (key, reason)
        for key, several in reasons(tmp_path / "out", catalog).items()
        for reason in several
    ]
    # The key of a missing picture is made of its folder too.
    for key, start in (
        ("images-0", "broken entry: images[0] is broken: got text"),
        ("no_split", "broken entry: images[7] is"),
        ("images-8", "broken entry: images[8] is"),
        ("no_list", "broken entry: images[9] is"),
        ("gone_odd", "of no split: strange, which ingest.splits does not have"),
        ("1002", "duplicate key: 1002.jpg after 1002.jpg"),
        ("gone_1000", "duplicate image id: 1000 is already gone/1000.jpg"),
    ):
        assert any(k.startswith(key) and r.startswith(start) for k, r in failed), key
    assert len(failed) == 7 + 2, "and one missing picture, one without a sentence"


def test_a_key_of_a_tar_is_found_in_the_lists() -> None:
    """A tar's pictures have no file name but a key."""
    assert list(identities({"tar": "0.tar", "image_id": "000000000042"})) == [("coco", 42)]
    assert list(identities({"image_id": "000000000042"})) == []


def test_pictures_that_others_evaluate_on_are_not_trained_on(tmp_path: Path) -> None:
    """Refused where the recipe trains on a corpus's val; left out by lists, by COCO's id whatever
    the file is called; taken where the recipe says so."""
    lists = karpathy(tmp_path, coco=True)
    with pytest.raises(
        SourceError, match="trains on 1 pictures that the corpus has for val or test"
    ):
        run(tmp_path, captions=lists, splits={"train": "train+restval+val", "test": "test"})
    names = {f"{i:012d}.jpg": ["x"] for i in range(4)}
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(encoded(seed=i))
    captions = write_json(tmp_path / "c.json", captions_of(names))
    catalog = run(tmp_path, captions=captions, heldout_fraction=0.0, exclude=[lists])
    assert [
        r for key, r in sorted(reasons(tmp_path / "out", catalog).items()) if "00" in key[:2]
    ] == [
        ["evaluation picture: 000000000002.jpg is in val of k.json"],
        ["evaluation picture: 000000000003.jpg is in test of k.json"],
    ]
    with pytest.raises(SourceError, match="expected ingest.exclude with dataset_coco.json"):
        run(tmp_path, captions=captions)
    (tmp_path / "ids.txt").write_text("3\n000000000001.jpg\n")
    found = run(
        tmp_path, captions=captions, heldout_fraction=0.0, exclude=[str(tmp_path / "ids.txt")]
    )
    assert set(samples(tmp_path / "out", found)) == {"000000000000", "000000000002"}
    old = captions_of({f"COCO_val2014_{i:012d}.jpg": ["x"] for i in range(4)})
    captions = write_json(tmp_path / "c.json", old)
    with pytest.raises(SourceError, match="expected ingest.exclude with dataset_coco.json"):
        run(tmp_path, captions=captions)
    catalog = run(tmp_path, captions=captions, allow_evaluation_pictures=True)
    assert len(samples(tmp_path / "out", catalog)) == 4
