"""`stages.distill.run` and `label`: what ends in the shards, what is skipped, what stops."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from distill_fakes import (
    POISON,
    SHARDS,
    FakeTeacher,
    make_sample,
    picture_bytes,
    plain_shards,
    source_of,
    tree_of,
    write_images,
)
from PIL import Image

from sharding.format.catalog import Catalog, read_catalog
from sharding.format.manifest import read_manifest
from sharding.format.schema import Failure, Sample, ShardError
from sharding.reading.sample_reader import iterate
from sharding.tools.verify import verify_paths
from sharding.writing.shard_writer import write_shard
from stages.detector.detectron2_config import Detectron2Config
from stages.distill import fingerprint, label
from stages.distill.config import DistillConfig
from stages.distill.inference.failures import DistillError
from stages.distill.label import select
from stages.distill.run import distill, finish

DETECTRON2 = Detectron2Config(config_file="a.yaml", weights="a.pkl")
CONFIG = DistillConfig(batch_size=2, phrases="lexicon", score_threshold=0.4, min_objects=1)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", plain_shards())
    return tmp_path / "images"


def read_raw(folder: Path) -> Iterator[dict[str, Any]]:
    """Samples as stock webdataset groups them."""
    for tar in sorted(folder.glob("*.tar")):
        yield from webdataset.WebDataset(str(tar), shardshuffle=False)


def poisoned(key: str) -> Sample:
    """A picture that the fake teacher cannot look at."""
    pixels = np.full((4, 4, 3), POISON, np.uint8)
    info = {"captions": ["a circle"], "width": 4, "height": 4}
    return Sample(key=key, image=picture_bytes(pixels, "png"), extension="png", info=info)


def test_stock_webdataset_reads_what_teacher_and_captions_say(images: Path, tmp_path: Path) -> None:
    """Oracle: the teacher called on each picture alone, and the selection spelled out; phrases are
    slices of their captions, the rest of the sample is the image shard's."""
    out = tmp_path / "objects"
    distill(CONFIG, images=images, object_source=source_of(FakeTeacher()), out=out)
    inputs = {s.key: s for samples in plain_shards().values() for s in samples}
    num_phrases = 0
    for raw in read_raw(out):
        sample = inputs.pop(raw["__key__"])
        assert raw[sample.extension] == sample.image
        objects = np.load(io.BytesIO(raw["objects.npy"]), allow_pickle=False)
        everything = FakeTeacher().look(np.asarray(Image.open(io.BytesIO(sample.image))))
        assert np.array_equal(objects, everything[:3])  # 0.9, 0.7, 0.5; 0.3 is below 0.4
        info = json.loads(raw["json"])
        phrases = info.pop("phrases")
        assert info == sample.info
        for caption, found in zip(info["captions"], phrases, strict=True):
            num_phrases += len(found)
            for phrase in found:
                assert caption[phrase["start"] : phrase["end"]] == phrase["text"]
                assert len(phrase["similarity"]) == len(objects)
    assert not inputs
    assert num_phrases > 5


@pytest.mark.parametrize("caption", ["красный шар", "a red circle"])
def test_captions_without_a_phrase_are_a_warning(
    caption: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A language that the phrase finder does not know. Oracle: the warning that PRA learns nothing,
    and none where captions have phrases."""
    shards: dict[str, list[Sample | Failure]] = {
        tar: [replace(s, info={**s.info, "captions": [caption]}) for s in samples]
        for tar, samples in plain_shards().items()
    }
    write_images(tmp_path / "images", shards)
    out = tmp_path / "objects"
    distill(CONFIG, images=tmp_path / "images", object_source=source_of(FakeTeacher()), out=out)
    assert ("no targets and learn nothing" in capsys.readouterr().out) == (caption == "красный шар")


def test_similarities_stand_in_the_order_of_the_objects(images: Path, tmp_path: Path) -> None:
    """Oracle: cosines of {stop, light} with each object's words, worked out by hand."""
    by_hand = {
        (2, 0): 2 / 6**0.5,  # red stop light
        (2, 1): 2 / 6**0.5,  # blue stop light
        (2, 2): 2 / 6**0.5,  # light blue stop light: light counts once
        (0, 2): 1 / 6**0.5,  # light blue circle
        (1, 2): 1 / 6**0.5,
    }
    distill(CONFIG, images=images, object_source=source_of(FakeTeacher()), out=tmp_path / "objects")
    seen = set()
    for raw in read_raw(tmp_path / "objects"):
        info = json.loads(raw["json"])
        objects = np.load(io.BytesIO(raw["objects.npy"]), allow_pickle=False)
        pairs = list(zip(objects["label"].tolist(), objects["attribute"].tolist()))
        for caption, found in zip(info["captions"], info["phrases"]):
            if caption == "Stop lights!":
                (phrase,) = found
                assert phrase["text"] == "Stop lights"
                assert phrase["similarity"] == [round(by_hand.get(pair, 0.0), 4) for pair in pairs]
                seen.update(pairs)
    assert seen & set(by_hand) and seen - set(by_hand)


def test_catalog_tells_what_readers_need(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "objects"
    catalog = distill(CONFIG, images=images, object_source=source_of(FakeTeacher()), out=out)
    assert catalog == read_catalog(out)
    assert catalog.kind == "objects"
    assert {shard.tar: shard.split for shard in catalog.shards} == SHARDS
    assert catalog.metadata == {
        "label_names": FakeTeacher.label_names,
        "attribute_names": FakeTeacher.attribute_names,
        "feature_size": 6,
        "num_top": 2,
        "similarity": "lexical",
        "teacher": "fake/1",
        "chunker": "lexicon",
        "source": "t",
    }
    assert not verify_paths([out], full=True)


def test_bad_pictures_are_failures_with_reasons_and_take_nobody_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: the good pictures' arrays are those of a run without the bad ones; counts by hand."""
    random = np.random.default_rng(1)
    good = [make_sample(f"good-{i}", ["a circle"], random) for i in range(4)]
    sized = replace(good[0], key="sized", info={**good[0].info, "width": 99})
    cut = replace(good[1], key="cut", image=good[1].image[: len(good[1].image) // 2])
    text = replace(good[2], key="text", image=b"no picture")
    # In batches of two the poisoned one shares a batch with good-3.
    samples = [sized, good[0], cut, good[1], good[2], text, poisoned("poison"), good[3]]
    earlier = Failure(key="x", reason="y")  # of ingest: no input of this stage
    write_images(tmp_path / "images", {"train-000000.tar": [earlier, *samples]})
    write_images(tmp_path / "clean", {"train-000000.tar": good})
    for source in ("images", "clean"):
        distill(
            CONFIG,
            images=tmp_path / source,
            object_source=source_of(FakeTeacher()),
            out=tmp_path / f"{source}-out",
        )
    manifest = read_manifest(tmp_path / "images-out" / "train-000000.tar")
    assert (manifest.num_input, manifest.num_ok, manifest.num_failed) == (8, 4, 4)
    reasons = {failure.key: failure.reason for failure in manifest.failures}
    assert list(reasons) == ["sized", "cut", "text", "poison"]
    assert "99" in reasons["sized"]
    assert reasons["text"].startswith(
        "decode: PictureError: not JPEG, PNG or WebP: it is something"
    )
    assert reasons["cut"].startswith("decode: ")
    assert reasons["poison"] == "detect: RuntimeError: cannot look at"
    clean = read_manifest(tmp_path / "clean-out" / "train-000000.tar")
    assert [(s.key, s.crc32) for s in manifest.samples] == [(s.key, s.crc32) for s in clean.samples]
    assert "1 x detect: RuntimeError: cannot look at" in capsys.readouterr().out


def test_done_shards_are_skipped_and_others_are_not(images: Path, tmp_path: Path) -> None:
    """Oracle: the teacher counts its calls."""
    out = tmp_path / "objects"

    def num_pictures_looked_at(config: DistillConfig = CONFIG, fingerprint: str = "fake/1") -> int:
        teacher = FakeTeacher(fingerprint)
        distill(config, images=images, object_source=source_of(teacher), out=out)
        return sum(teacher.batch_sizes)

    assert num_pictures_looked_at() == 3 + 4 + 5
    before = tree_of(out)
    assert num_pictures_looked_at() == 0
    assert num_pictures_looked_at(replace(CONFIG, num_threads=1, num_decoders=9)) == 0
    assert num_pictures_looked_at(replace(CONFIG, batch_size=9)) == 0
    assert tree_of(out) == before
    (out / "train-000000.tar").write_bytes(b"cut short")
    assert num_pictures_looked_at() == 4
    assert tree_of(out) == before
    shards = plain_shards()
    shards["heldout-000000.tar"] = shards["heldout-000000.tar"][:2]
    write_images(images, shards)
    assert num_pictures_looked_at() == 0  # its pictures are as they were, there are fewer
    assert read_manifest(out / "heldout-000000.tar").num_ok == 2
    assert num_pictures_looked_at(fingerprint="fake/2") == 11
    assert num_pictures_looked_at(replace(CONFIG, score_threshold=0.1), "fake/2") == 11
    assert num_pictures_looked_at(replace(CONFIG, object_text="label"), "fake/2") == 11


def test_the_fingerprint_has_what_moves_last_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device, and in half precision the size of a batch. Oracle: the entries, by hand; on a CPU
    in single precision there is nothing that moves any."""
    in_bf16 = replace(CONFIG, precision="bf16")
    assert fingerprint._arithmetic(CONFIG) == {}
    assert fingerprint._arithmetic(in_bf16) == {"batch_size": "2", "batches": "planned/1"}
    in_tf32 = replace(in_bf16, precision="tf32")
    assert fingerprint._arithmetic(in_tf32) == {"batch_size": "2", "batches": "planned/1"}
    monkeypatch.setattr(fingerprint, "pick_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    assert fingerprint._arithmetic(CONFIG) == {"device": "NVIDIA A100"}
    assert fingerprint._arithmetic(replace(in_bf16, bucket_px=64)) == {
        "batch_size": "2",
        "batches": "planned/1",
        "bucket_px": "64",
        "device": "NVIDIA A100",
    }


def test_finished_shards_of_other_versions_are_accepted_where_the_recipe_says_so(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the teacher counts its calls; the bytes of shards that stay; versions in
    manifests."""
    out, accepting = tmp_path / "objects", replace(CONFIG, accept_versions=True)

    def num_pictures_looked_at(config: DistillConfig) -> int:
        teacher = FakeTeacher()
        distill(config, images=images, object_source=source_of(teacher), out=out)
        return sum(teacher.batch_sizes)

    assert num_pictures_looked_at(CONFIG) == 3 + 4 + 5
    before = tree_of(out)
    monkeypatch.setattr(fingerprint, "library_versions", lambda *names: "torch 99.0")
    (out / "train-000000.tar").unlink()
    assert num_pictures_looked_at(accepting) == 4
    tars = {name: data for name, data in before.items() if name.endswith(".tar")}
    assert {name: tree_of(out)[name] for name in tars} == tars
    assert read_manifest(out / "train-000000.tar").fingerprint["versions"] == "torch 99.0"
    assert "numpy" in read_manifest(out / "train-000001.tar").fingerprint["versions"]
    assert num_pictures_looked_at(replace(accepting, score_threshold=0.1)) == 12
    assert num_pictures_looked_at(replace(CONFIG, score_threshold=0.1)) == 0


def test_any_number_of_workers_ends_with_the_same_bytes(images: Path, tmp_path: Path) -> None:
    """Oracle: the folder of one worker; and every picture was looked at once, by one of them."""
    distill(CONFIG, images=images, object_source=source_of(FakeTeacher()), out=tmp_path / "one")
    out, teachers = tmp_path / "many", [FakeTeacher() for _ in range(4)]

    def work(teacher: FakeTeacher) -> Catalog:
        return distill(CONFIG, images=images, object_source=source_of(teacher), out=out, show=False)

    with ThreadPoolExecutor(len(teachers)) as pool:
        catalogs = list(pool.map(work, teachers))
    assert catalogs == [read_catalog(tmp_path / "one")] * len(teachers)
    assert tree_of(out) == tree_of(tmp_path / "one")
    assert sum(sum(teacher.batch_sizes) for teacher in teachers) == 3 + 4 + 5
    assert finish(images, out) == catalogs[0]
    assert tree_of(out) == tree_of(tmp_path / "one")


def test_finish_refuses_a_mix_of_settings(images: Path, tmp_path: Path) -> None:
    """A shard of another teacher, or one that lost a picture, must not end in a catalog."""
    out = tmp_path / "objects"
    distill(CONFIG, images=images, object_source=source_of(FakeTeacher()), out=out)
    distill(
        CONFIG, images=images, object_source=source_of(FakeTeacher("b")), out=tmp_path / "other"
    )
    sound = tree_of(out)
    for name in ("train-000001.tar", "train-000001.tar.json"):
        (out / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(DistillError, match="1 of 3 .* first is train-000001.tar"):
        finish(images, out)
    short = [replace(sample, objects=None) for sample in iterate(images / "train-000001.tar")]
    fingerprint = json.loads(sound["train-000001.tar.json"])["fingerprint"]
    write_shard(out / "train-000001.tar", short[1:], fingerprint=fingerprint)
    with pytest.raises(ShardError, match=r"train-000001.tar: got 4 .* 5 inputs: 1 are lost \(2-0"):
        finish(images, out)
    with pytest.raises(DistillError, match="about.json"):
        finish(images, tmp_path / "nowhere")


def test_only_what_changed_goes_to_the_teacher(tmp_path: Path) -> None:
    """One picture, one caption and one new input of eight; oracle: the teacher's calls, and the
    bytes of a run from nothing."""
    random = np.random.default_rng(2)
    before = [make_sample(str(i), ["a circle"], random) for i in range(8)]
    after = list(before)
    pixels = np.asarray(Image.open(io.BytesIO(before[1].image)))
    after[1] = replace(before[1], image=picture_bytes(255 - pixels, before[1].extension))
    after[4] = replace(before[4], info={**before[4].info, "captions": ["a square"]})
    after.insert(6, make_sample("new", ["a circle"], random))
    for name, samples in (("before", before), ("after", after)):
        write_images(tmp_path / name, {"train-000000.tar": samples})
    teacher = FakeTeacher()
    distill(
        CONFIG,
        images=tmp_path / "before",
        object_source=source_of(FakeTeacher()),
        out=tmp_path / "out",
    )
    distill(
        CONFIG, images=tmp_path / "after", object_source=source_of(teacher), out=tmp_path / "out"
    )
    distill(
        CONFIG,
        images=tmp_path / "after",
        object_source=source_of(FakeTeacher()),
        out=tmp_path / "new",
    )
    assert sum(teacher.batch_sizes) == 3
    assert tree_of(tmp_path / "out") == tree_of(tmp_path / "new")


def test_wrong_input_folders_are_refused(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "objects"
    with pytest.raises(ShardError, match="catalog"):
        distill(
            CONFIG, images=tmp_path / "nothing", object_source=source_of(FakeTeacher()), out=out
        )
    distill(CONFIG, images=images, object_source=source_of(FakeTeacher()), out=out)
    with pytest.raises(DistillError, match="holds objects"):
        distill(CONFIG, images=out, object_source=source_of(FakeTeacher()), out=tmp_path / "again")
    manifest = images / "train-000000.tar.json"
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    with pytest.raises(ShardError, match="train-000000.tar"):
        distill(CONFIG, images=images, object_source=source_of(FakeTeacher("b")), out=out)


class UnsortedTeacher(FakeTeacher):
    def look(self, picture: np.ndarray) -> np.ndarray:
        objects = super().look(np.ones((8, 8, 3), np.uint8))
        objects["score"] = np.linspace(0.4, 0.9, len(objects))
        return objects


class StrangeLabelTeacher(FakeTeacher):
    def __init__(self, field: str, value: int) -> None:
        super().__init__()
        self.field, self.value = field, value

    def look(self, picture: np.ndarray) -> np.ndarray:
        objects = super().look(np.ones((8, 8, 3), np.uint8))
        objects[self.field] = self.value
        return objects


class OtherSizeTeacher(FakeTeacher):
    feature_size = 7

    def look(self, picture: np.ndarray) -> np.ndarray:
        return FakeTeacher().look(picture)


class SilentTeacher(FakeTeacher):
    def detect(self, prepared: object) -> list[np.ndarray]:
        return []


@pytest.mark.parametrize(
    "teacher, error, text",
    [
        (UnsortedTeacher(), ShardError, "picture 0-0: .*score"),
        (StrangeLabelTeacher("label", -1), ShardError, "picture 0-0: got a label below 0"),
        (StrangeLabelTeacher("label", 3), ShardError, "got label 3, expected less than 3"),
        (StrangeLabelTeacher("top_label", 3), ShardError, "got top_label 3, expected less than 3"),
        (StrangeLabelTeacher("attribute", 3), ShardError, "got attribute 3, expected less than 3"),
        (OtherSizeTeacher(), ShardError, r"\(6,\)\), .*expected .*\(7,\)\), "),
        (SilentTeacher(), DistillError, r"0 arrays for \d pictures"),
    ],
)
def test_a_teacher_at_fault_stops_the_stage(
    images: Path, tmp_path: Path, teacher: FakeTeacher, error: type[Exception], text: str
) -> None:
    """Never a shard full of failures for a fault that is not the pictures'."""
    with pytest.raises(error, match=text):
        distill(CONFIG, images=images, object_source=source_of(teacher), out=tmp_path / "objects")
    assert not list((tmp_path / "objects").glob("*.tar*"))


def test_a_teacher_that_fails_on_everything_stops_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label, "MAX_FAILURES_IN_A_ROW", 5)
    good = make_sample("good", ["a"], np.random.default_rng(0))
    bad = [poisoned(f"bad-{i}") for i in range(8)]
    write_images(tmp_path / "some", {"train-000000.tar": [*bad[:4], good, *bad[4:]]})
    distill(
        CONFIG, images=tmp_path / "some", object_source=source_of(FakeTeacher()), out=tmp_path / "a"
    )
    assert read_manifest(tmp_path / "a" / "train-000000.tar").num_failed == 8
    write_images(tmp_path / "all", {"train-000000.tar": bad})
    with pytest.raises(DistillError, match="5 pictures in a row, last on bad-4"):
        distill(
            CONFIG,
            images=tmp_path / "all",
            object_source=source_of(FakeTeacher()),
            out=tmp_path / "b",
        )


class FullTeacher(FakeTeacher):
    def detect(self, prepared: object) -> list[np.ndarray]:
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_memory_too_small_for_any_picture_stops_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label, "MAX_OUT_OF_MEMORY_IN_A_ROW", 3)
    random = np.random.default_rng(0)
    samples = [make_sample(f"s{i}", [], random) for i in range(4)]
    write_images(tmp_path / "images", {"train-000000.tar": samples})
    with pytest.raises(DistillError, match="ran out on 3 pictures in a row, .* last on s2"):
        distill(
            CONFIG,
            images=tmp_path / "images",
            object_source=source_of(FullTeacher()),
            out=tmp_path / "objects",
        )
    assert not list((tmp_path / "objects").glob("*.tar*"))


def test_failures_with_kept_samples_between_are_in_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: 6 pictures that always fail, each behind one that is kept as it was; 5 in a row
    would stop the stage, and do where nothing is kept."""
    monkeypatch.setattr(label, "MAX_FAILURES_IN_A_ROW", 5)
    random = np.random.default_rng(0)
    good = [make_sample(f"good-{i}", [], random) for i in range(6)]
    bad = [poisoned(f"bad-{i}") for i in range(6)]
    mixed = [sample for pair in zip(good, bad) for sample in pair]
    for name, samples in (("good", good), ("mixed", mixed), ("bad", bad)):
        write_images(tmp_path / name, {"train-000000.tar": samples})
    for name in ("good", "mixed"):
        distill(
            CONFIG,
            images=tmp_path / name,
            object_source=source_of(FakeTeacher(), batch_size=1),
            out=tmp_path / "out",
        )
    assert read_manifest(tmp_path / "out" / "train-000000.tar").num_failed == 6
    with pytest.raises(DistillError, match="5 pictures in a row"):
        distill(
            CONFIG,
            images=tmp_path / "bad",
            object_source=source_of(FakeTeacher()),
            out=tmp_path / "none",
        )


def test_the_screen_tells_where_the_time_went(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: every part is named, with pictures a second and the device's share."""
    distill(CONFIG, images=images, object_source=source_of(FakeTeacher()), out=tmp_path / "objects")
    (line,) = [text for text in capsys.readouterr().out.splitlines() if "pictures/s" in text]
    seconds = r"[\d.e-]+ s"
    parts = ("decode wait", "device", "selection", "phrases", "write")
    assert re.search(
        rf"distill: [\d.]+ pictures/s in {seconds}, device busy \d+%\. Side by side: "
        + "  ".join(f"{part} {seconds}" for part in parts),
        line,
    )


def test_a_data_set_without_any_sound_picture_is_finished_with_an_error(tmp_path: Path) -> None:
    """Oracle: every failure is in the catalog, so that `boxless retry` finds it."""
    write_images(tmp_path / "images", {"train-000000.tar": [poisoned("p")]})
    with pytest.raises(DistillError, match="all 1 failed"):
        distill(
            CONFIG,
            images=tmp_path / "images",
            object_source=source_of(FakeTeacher()),
            out=tmp_path / "objects",
        )
    assert read_catalog(tmp_path / "objects").shards[0].num_failed == 1


@pytest.mark.parametrize(
    "threshold, least, most, kept",
    [
        (0.4, 0, 9, 3),  # 0.9 0.7 0.5 | 0.3
        (0.95, 0, 9, 0),
        (0.95, 2, 9, 2),
        (0.95, 9, 9, 4),
        (0.0, 0, 2, 2),
        (0.7, 0, 9, 2),  # equal reaches; 0.7 is not exact in half precision
        (None, None, None, 4),  # the teacher's own
        (None, 1, 2, 2),
        (0.8, None, None, 1),
        (0.95, 2, None, 2),
    ],
)
def test_select(threshold: float | None, least: int | None, most: int | None, kept: int) -> None:
    """Counts by hand from the scores 0.9, 0.7, 0.5, 0.3."""
    objects = FakeTeacher().look(np.full((2, 2, 3), (1, 0, 0), np.uint8))
    config = DistillConfig(score_threshold=threshold, min_objects=least, max_objects=most)
    assert np.array_equal(select(objects, config), objects[:kept])


@pytest.mark.parametrize(
    "fields, text",
    [
        ({"batch_size": 0}, "batch_size is 0; expected 1 or more"),
        ({"num_decoders": 0}, "num_decoders is 0; expected 1 or more"),
        ({"min_objects": -1}, "min_objects is -1; expected 0 or more"),
        ({"max_objects": 0}, "max_objects is 0; expected 1 or more"),
        ({"min_objects": 5, "max_objects": 4}, "min_objects is 5; expected 0 to max_objects, 4"),
        ({"score_threshold": 1.5}, "score_threshold is 1.5"),
        ({"teacher": "me"}, "teacher is 'me'; expected 'run', 'detectron2', 'features'"),
        ({"teacher": "features"}, "features is null while teacher is 'features'"),
        ({"detectron2": DETECTRON2}, "detectron2 is set while teacher is 'run'"),
        (
            {"precision": "bf16", "teacher": "detectron2", "detectron2": DETECTRON2},
            "precision is 'bf16'; expected 'fp32' with teacher 'detectron2'",
        ),
        ({"precision": "fp16"}, "precision is 'fp16'; expected 'fp32', 'tf32', 'bf16'"),
        ({"phrases": "magic"}, "phrases is 'magic'; expected 'auto', 'parser', 'lexicon'"),
        ({"object_text": "name"}, "object_text is 'name'"),
        ({"parser": ""}, "parser is empty"),
        ({"num_threads": -1}, "num_threads is -1"),
    ],
)
def test_config_is_checked(fields: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        DistillConfig(**fields)  # type: ignore[arg-type]
