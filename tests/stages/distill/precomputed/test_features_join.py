"""`stages.distill.precomputed.join`, `ids`, `index` and `names`: who belongs to whom, and a whole
distillation from old features."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import features_files as files
import numpy as np
import pytest
from distill_fakes import tree_of, write_images
from features_files import LABELS, SIZE, TeacherOutput, make_outputs, sample_of
from test_features_formats import expected_of, source_of, write_lxmert, write_oscar

from sharding.format.manifest import read_manifest
from sharding.format.schema import Failure, Sample
from sharding.reading.sample_reader import OpenTar, iterate, read_info
from sharding.tools.verify import verify_paths
from stages.distill.config import DistillConfig
from stages.distill.make_object_source import make_object_source
from stages.distill.precomputed import index
from stages.distill.precomputed.config import FeaturesConfig
from stages.distill.precomputed.formats.record import FeaturesError
from stages.distill.precomputed.formats.tsv import scan_lines
from stages.distill.precomputed.ids import reduce_id, rule_of, sample_id
from stages.distill.precomputed.join import PrecomputedObjects
from stages.distill.precomputed.names import read_names
from stages.distill.run import distill

IDS = [str(number) for number in range(100, 112)]


def config_of(written: dict[str, Any], **fields: Any) -> FeaturesConfig:
    return FeaturesConfig(**{"feature_size": SIZE, **written, **fields})


@pytest.mark.parametrize(
    "text, kind, expected",
    [
        ("COCO_val2014_000000000042", "whole", "COCO_val2014_000000000042"),
        ("COCO_val2014_000000000042.jpg", "number", "42"),
        ("coco_train2014_000000000042.npz", "number", "42"),
        ("42", "number", "42"),
        ("000", "number", "0"),
        ("no digits", "number", None),
        ("flickr30k_1000092795.npz", "stem", "flickr30k_1000092795"),
        ("a/b.c.jpg", "stem", "b.c"),
        ("", "stem", None),
        ("", "whole", None),
    ],
)
def test_ids_are_reduced(text: str, kind: str, expected: str | None) -> None:
    assert reduce_id(text, kind) == expected


def test_rules_of_both_sides() -> None:
    """The pattern is for the features' ids alone, and must match as a whole."""
    base: dict[str, Any] = {"format": "butd-npz", "path": "p", "labels": "l"}
    rule = rule_of(FeaturesConfig(**base, id="stem", pattern="nlvr2_(.*)"))
    assert rule("nlvr2_dev-1-0-img0.npz") == "dev-1-0-img0"
    assert rule("a_nlvr2_dev-1-0-img0.npz") is None
    info = {"image_id": 42, "file_name": "val/COCO_000042.jpg", "flag": True}
    for join, kind, expected in (
        ("image_id", "whole", "42"),
        ("key", "whole", "k"),
        ("file_name", "stem", "COCO_000042"),
        ("file_name", "number", "42"),
    ):
        assert sample_id("k", info, FeaturesConfig(**base, join=join, id=kind)) == expected
    assert sample_id("k", {}, FeaturesConfig(**base)) is None
    assert sample_id("k", {"image_id": True}, FeaturesConfig(**base)) is None


def test_features_are_found_by_file_name(tmp_path: Path) -> None:
    """Ids as LXMERT's extraction has them: names without ending, where the samples have numbers."""
    (seen,) = make_outputs(["7"])
    named = replace(seen, id="COCO_val2014_000000000007")
    sample = sample_of(seen, file_name="val2014/COCO_val2014_000000000007.jpg")
    written = write_lxmert(tmp_path, [named])
    (without,) = source_of(written).objects([sample])
    assert without == Failure(key="k-7", reason="no features")
    for fields in (
        {"join": "file_name", "id": "stem"},
        {"id": "number"},
        {"pattern": "COCO_val2014_0*([0-9]+)"},
    ):
        (objects,) = source_of(written, **fields).objects([sample])
        assert isinstance(objects, np.ndarray)
        assert np.array_equal(objects, expected_of(seen, written))
    (failed_result,) = source_of(written, join="file_name").objects([sample_of(seen)])
    assert isinstance(failed_result, Failure)
    assert failed_result.reason == "no features: its json has no file_name to find them by"


def test_a_rule_that_finds_nothing_is_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (seen,) = make_outputs(["COCO_7"])
    object_source = PrecomputedObjects(config_of(write_lxmert(tmp_path, [seen])))
    sample = sample_of(make_outputs(["7"])[0])
    assert all(isinstance(result, Failure) for result in object_source.objects([sample] * 600))
    reported = capsys.readouterr().out
    assert (
        reported.count(
            "none for the first 256 pictures. Sample k-7 asks for '7', the files have 'COCO_7'"
        )
        == 1
    )


def test_a_rule_that_finds_nothing_at_all_is_refused_in_the_end(tmp_path: Path) -> None:
    """Oracle: one picture more or less among the features; the error names both sides' ids."""
    looks = make_outputs(["COCO_7", "8"])
    object_source = PrecomputedObjects(config_of(write_lxmert(tmp_path, looks)))
    samples = [sample_of(look) for look in make_outputs(["7", "8"])]
    infos = [(sample.key, sample.info) for sample in samples]
    assert object_source.account(infos).num_pictures_without_features == 1
    with pytest.raises(
        FeaturesError,
        match="join is 'image_id', by which none of 1 pictures has "
        "features. Sample k-7 asks for '7', the files have .*'COCO_7'",
    ):
        object_source.account(infos[:1])
    assert object_source.account([]).num_pictures == 0


def test_the_index_is_kept_and_taken_only_where_it_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: passes counted; results of an index in memory."""
    seen = make_outputs(IDS)
    written, folder = write_oscar(tmp_path, seen), tmp_path / "index"
    passes: list[str] = []
    pass_over = index._pass_over

    def counted(path: Path, *arguments: Any) -> index.Part:
        passes.append(path.name)
        return pass_over(path, *arguments)

    monkeypatch.setattr(index, "_pass_over", counted)

    def results(**fields: Any) -> tuple[str, list[Any]]:
        config = config_of(written, **fields)
        object_source = PrecomputedObjects(config, index_folder=folder, show=False)
        in_memory = PrecomputedObjects(config, show=False)
        assert object_source.fingerprint == in_memory.fingerprint
        found = list(object_source.objects(map(sample_of, seen)))
        for one, other in zip(found, in_memory.objects(map(sample_of, seen)), strict=True):
            assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other
        del passes[-2:]  # of the one in memory
        taken = list(passes)
        passes.clear()
        return object_source.fingerprint, taken

    first, taken = results()
    assert taken == ["features.tsv", "predictions.tsv"]
    assert results() == (first, [])
    other_rule, taken = results(id="number")
    assert taken == ["features.tsv", "predictions.tsv"] and other_rule != first
    rows = (tmp_path / "features.tsv").read_bytes().splitlines(keepends=True)
    (tmp_path / "features.tsv").write_bytes(b"".join(rows[1:] + rows[:1]))
    moved, taken = results()
    assert taken == ["features.tsv"] and moved != first
    for kept in folder.glob("features.tsv-*.npz"):
        kept.write_bytes(kept.read_bytes()[:-50])
    assert results() == (moved, ["features.tsv"])
    for kept in folder.glob("features.tsv-*.npz"):
        arrays = {name: np.zeros(num, "<u8") for num, name in enumerate(index._ARRAYS, 3)}
        np.savez(kept, **arrays, num_faults=0, faults=np.array([], "U"))
    assert results() == (moved, ["features.tsv"])


def test_workers_make_one_pass_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_lxmert(tmp_path, make_outputs(IDS))
    passes: list[Path] = []
    pass_over = index._pass_over

    def counted(path: Path, *arguments: Any) -> index.Part:
        passes.append(path)
        return pass_over(path, *arguments)

    monkeypatch.setattr(index, "_pass_over", counted)
    config = config_of(written)
    workers = [
        threading.Thread(
            target=PrecomputedObjects,
            args=(config,),
            kwargs={"index_folder": tmp_path / "index", "show": False},
        )
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(passes) == 1


def test_lines_of_any_length_are_scanned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offsets and lengths by hand; a line beyond the limit is passed over, the next is found."""
    from stages.distill.precomputed.formats import tsv

    monkeypatch.setattr(tsv, "MAX_ROW_BYTES", 16)
    path = tmp_path / "t"
    path.write_bytes(b"a\t1\n" + b"b\t" + b"x" * 40 + b"\n\r\n" + b'"c""d"\t2\r\ne\t3')
    with open(path, "rb") as source:
        found = list(scan_lines(source))
    assert [(row.id, row.offset, row.length) for row in found] == [
        ("a", 0, 4),
        (None, 4, 43),
        ('c"d', 49, 10),
        ("e", 59, 3),
    ]
    assert "more than 16 bytes" in found[1].fault


def test_the_fingerprint_is_of_content_not_of_place(tmp_path: Path) -> None:
    seen = make_outputs(IDS)
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    a, b = (source_of(write_lxmert(folder, seen)).fingerprint for folder in folders)
    assert a == b
    assert source_of(write_lxmert(folders[0], seen), duplicates="first").fingerprint != a
    assert source_of(write_lxmert(folders[0], seen[1:])).fingerprint != a
    written = write_lxmert(folders[0], seen)
    Path(written["labels"]).write_text("\n".join(LABELS[::-1]))
    assert source_of(written).fingerprint != a


@pytest.mark.parametrize(
    "name, text, expected",
    [
        (
            "a.txt",
            "yolk\ngoal,goals\n",
            ({"yolk": 0, "goal,goals": 1, "goal": 1, "goals": 1}, {1: 0, 2: 1}),
        ),
        ("a.txt", "__background__\nyolk\n", ({"yolk": 0}, {1: 0})),
        (
            "a.json",
            '{"label_to_idx": {"b": 2, "__background__": 0, "a": 1}}',
            ({"a": 0, "b": 1}, {1: 0, 2: 1}),
        ),
        (
            "a.json",
            '{"categories": [{"id": 90, "name": "z"}, {"id": 1, "name": "a"}]}',
            ({"a": 0, "z": 1}, {1: 0, 90: 1}),
        ),
    ],
)
def test_names_are_read(tmp_path: Path, name: str, text: str, expected: Any) -> None:
    (tmp_path / name).write_text(text)
    names = read_names(str(tmp_path / name), field="labels", section="label")
    assert (dict(names.of_name), dict(names.of_number)) == expected


@pytest.mark.parametrize(
    "name, text, reason",
    [
        ("a.txt", "", "no names in it"),
        ("a.txt", "yolk\n\ngoal\n", "line 2 is empty"),
        ("a.json", "[", "expected one name a line, or JSON"),
        ("a.json", "{}", 'neither "categories" nor "label_to_idx"'),
        ("a.json", '{"label_to_idx": {"a": 1, "b": 1}}', "two names have one number"),
        ("a.json", '{"label_to_idx": {"a": "1"}}', "with the number '1'"),
        ("missing.txt", None, "No such file"),
    ],
)
def test_other_files_of_names_are_refused(
    tmp_path: Path, name: str, text: str | None, reason: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(FeaturesError, match=f"^distill.features.labels is .*{reason}"):
        read_names(str(tmp_path / name), field="labels", section="label")


@pytest.mark.parametrize(
    "fields, text",
    [
        ({"format": "hdf5"}, "format is 'hdf5'; expected 'butd-npz'"),
        ({"path": ""}, "path is empty"),
        ({"join": "name"}, "join is 'name'"),
        ({"id": "half"}, "id is 'half'"),
        ({"duplicates": "last"}, "duplicates is 'last'"),
        ({"feature_size": 0}, "feature_size is 0"),
        ({"num_top": 0}, "num_top is 0"),
        ({"predictions": "p"}, "predictions is 'p' with format 'butd-npz'"),
        ({"labels": None}, "labels is null with format 'butd-npz'"),
        ({"labels": None, "format": "butd-tsv", "num_top": 2}, "labels is null, for rows without"),
        ({"pattern": "("}, "pattern is .* no regular expression"),
        ({"pattern": "a.*"}, "pattern is 'a.*' with 0 groups"),
    ],
)
def test_config_is_checked(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        FeaturesConfig(**{"format": "butd-npz", "path": "p", "labels": "l", **fields})


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    names = files.write_names(tmp_path)
    (tmp_path / "empty.tsv").write_bytes(b"")
    for fields, reason in (
        ({"format": "butd-tsv", "path": str(tmp_path / "no.tsv")}, "path is .*no file"),
        ({"format": "butd-tsv", "path": str(tmp_path)}, "path is .*a folder"),
        ({"format": "butd-tsv", "path": str(tmp_path / "*.tsv")}, "path is .*no row of an id"),
        ({"format": "butd-npz", "path": str(tmp_path)}, "path is .*no .npz file"),
        ({"format": "coco-json", "path": "p", "num_top": 6}, "num_top is 6, but labels names 5"),
    ):
        with pytest.raises(FeaturesError, match=f"^distill.features.{reason}"):
            source_of({**fields, **names})


def shards_of(seen: Sequence[TeacherOutput]) -> dict[str, list[Sample]]:
    return {
        "heldout-000000.tar": [sample_of(each) for each in seen[:2]],
        "train-000000.tar": [sample_of(each) for each in seen[2:7]],
        "train-000001.tar": [sample_of(each) for each in seen[7:]],
    }


def test_a_whole_distillation_from_old_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """12 pictures, of which one has no features, one a broken row and one two rows that differ;
    one row more has no picture. Oracle: the numbers written; counts by hand."""
    seen = make_outputs(IDS)
    write_images(tmp_path / "images", shards_of(seen))
    rows = [files.lxmert_row(each) for each in seen[1:]]
    rows[3] = rows[3][:-20] + b"\r\n"
    rows.append(files.lxmert_row(replace(seen[9], features=-seen[9].features)))
    rows.append(files.lxmert_row(make_outputs(["999"])[0]))
    written = write_lxmert(tmp_path, seen)
    (tmp_path / "val.tsv").write_bytes(b"".join(rows))
    config = DistillConfig(teacher="features", features=config_of(written), phrases="lexicon")
    out = tmp_path / "objects"
    catalog = distill(
        config,
        images=tmp_path / "images",
        object_source=make_object_source(config, tmp_path / "teacher"),
        out=out,
    )
    assert not verify_paths([out], full=True)
    assert catalog.metadata["label_names"] == list(LABELS)
    account = catalog.metadata["features"]
    assert (account["num_pictures"], account["num_pictures_without_features"]) == (12, 1)
    assert (account["num_features"], account["features_without_pictures"]) == (12, ["999"])
    assert (account["num_repeated"], account["repeated"]) == (1, ["109"])
    shown = capsys.readouterr().out
    assert "1 of 12 pictures have no features, 1 of 12 features have no picture (999)" in shown
    assert "1 x no features" in shown and "1 x features: features: " in shown
    failures, found = {}, {}
    for tar in (shard.tar for shard in catalog.shards):
        failures.update({f.key: f.reason for f in read_manifest(out / tar).failures})
        found.update({sample.key: sample for sample in iterate(out / tar)})
    assert set(failures) == {"k-100", "k-104", "k-109"}
    assert failures["k-100"] == "no features"
    assert "2 rows of '109' say different things" in failures["k-109"]
    for each in seen:
        if f"k-{each.id}" not in failures:
            sample = found[f"k-{each.id}"]
            assert np.array_equal(sample.objects, expected_of(each, written))
            assert [p["text"] for p in sample.info["phrases"][0]] == ["a tall yolk", "a stop light"]
    before = tree_of(out)
    distill(
        config,
        images=tmp_path / "images",
        object_source=make_object_source(config, tmp_path / "teacher"),
        out=out,
        show=False,
    )
    assert tree_of(out) == before


def test_info_is_read_without_the_picture(tmp_path: Path) -> None:
    """Oracle: the sample as it is read whole."""
    write_images(tmp_path, shards_of(make_outputs(IDS)))
    tar = tmp_path / "train-000000.tar"
    for entry, sample in zip(read_manifest(tar).samples, iterate(tar), strict=True):
        assert read_info(OpenTar(tar), entry) == sample.info
