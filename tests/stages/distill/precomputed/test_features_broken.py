"""`stages.distill.precomputed`: what is broken is named, refused and counted, and takes nothing
along.

Oracle: reasons and counts by hand; sound rows beside a broken one give the same objects as without.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import features_files as files
import msgpack
import numpy as np
import pytest
from features_files import LABELS, SIZE, TeacherOutput, make_output, make_outputs, sample_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_features_formats import (
    Written,
    source_of,
    write_butd,
    write_caffe,
    write_coco,
    write_d2,
    write_lxmert,
    write_oscar,
    write_scene_graph,
)

from sharding.format.schema import Failure, check_objects
from stages.distill.precomputed.config import FeaturesConfig
from stages.distill.precomputed.formats.arrays import from_base64, read_npz
from stages.distill.precomputed.formats.coco_json import CocoJson
from stages.distill.precomputed.formats.record import FeaturesError, RowError
from stages.distill.precomputed.formats.uniter_lmdb import _corners, find_package, read_msgpack
from stages.distill.precomputed.names import read_names

IDS = ("1", "2", "3")


def reason_of(written: Written, seen: TeacherOutput, **fields: Any) -> str:
    """Why the picture has no objects."""
    (failed,) = source_of(written, **fields).objects([sample_of(seen)])
    assert isinstance(failed, Failure) and failed.key == f"k-{seen.id}", failed
    return failed.reason


COLUMNS = (
    "img_id",
    "img_h",
    "img_w",
    "objects_id",
    "objects_conf",
    "attrs_id",
    "attrs_conf",
    "num_boxes",
    "boxes",
    "features",
)


@pytest.mark.parametrize(
    "column, change, reason",
    [
        ("features", lambda f: f[:-3] + b"\r\n", "features: wrong base64"),  # padding cut off
        ("boxes", lambda f: b"****" + f, "boxes: wrong base64"),
        ("boxes", lambda f: f[:-8], "boxes: .* bytes, expected"),
        ("objects_id", lambda f: f[: len(f) // 8 * 4], "objects_id: .* bytes, expected"),
        ("attrs_conf", lambda f: b"", "attrs_conf: 0 bytes, expected"),
        ("num_boxes", lambda f: b"99", ".*: .* bytes, expected"),
        ("num_boxes", lambda f: b"many", "num_boxes: b'many', expected a whole number"),
        ("num_boxes", lambda f: b"-1", "num_boxes: b'-1', expected a whole number"),
        ("img_w", lambda f: b"0", "size: 0 x"),
        ("img_w", lambda f: b"%d" % (3 * int(f)), "size: made from .* another shape"),
    ],
)
def test_a_broken_field_is_named(
    tmp_path: Path, column: str, change: Callable[[bytes], bytes], reason: str
) -> None:
    """The second row of three is broken; the others are as they would be without it."""
    seen = make_outputs(IDS)
    written = write_lxmert(tmp_path, seen)
    sound = list(source_of(written).objects(map(sample_of, seen)))
    rows = [files.lxmert_row(each) for each in seen]
    fields = rows[1].split(b"\t")
    fields[COLUMNS.index(column)] = change(fields[COLUMNS.index(column)])
    rows[1] = b"\t".join(fields)
    (tmp_path / "val.tsv").write_bytes(b"".join(rows))
    results = list(source_of(written).objects(map(sample_of, seen)))
    assert isinstance(results[1], Failure)
    assert re.match(f"features: {reason}", results[1].reason), results[1].reason
    for at in (0, 2):
        assert np.array_equal(results[at], sound[at])


def changed(seen: TeacherOutput, **fields: Callable[[np.ndarray], np.ndarray]) -> TeacherOutput:
    arrays = {name: change(getattr(seen, name).copy()) for name, change in fields.items()}
    return replace(seen, **arrays)  # type: ignore[arg-type]


def with_first(value: object) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[0] = value
        return array

    return change


@pytest.mark.parametrize(
    "write", (write_lxmert, write_caffe, write_d2, write_scene_graph, write_coco, write_butd)
)
@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"features": with_first(np.nan)}, "features: NaN"),
        ({"features": with_first(np.inf)}, "features: NaN"),
        ({"features": lambda f: f[:, :-1]}, "features?: .*(5 values|20 bytes|\\(5,\\)|numbers)"),
        ({"boxes": with_first((-9, 0, 5, 5))}, "boxes: .-9.0, 0.0, 5.0, 5.0. outside"),
        ({"boxes": with_first((0, 0, 5, 99))}, "boxes: .0.0, 0.0, 5.0, 99.0. outside"),
        ({"boxes": with_first((9, 0, 5, 5))}, "(boxes: .9.0, .* expected x0 <= x1|bbox: a width)"),
        ({"boxes": with_first(np.nan)}, "boxes: NaN"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    tmp_path: Path,
    write: Callable[[Path, list[TeacherOutput]], Written],
    fields: dict[str, Callable[[np.ndarray], np.ndarray]],
    reason: str,
) -> None:
    seen = make_outputs(IDS)
    bad = changed(seen[1], **fields)
    written = write(tmp_path, [seen[0], bad, seen[2]])
    results = list(source_of(written).objects(map(sample_of, seen)))
    assert [isinstance(result, Failure) for result in results] == [False, True, False]
    assert isinstance(results[1], Failure)
    assert re.match(f"features: {reason}", results[1].reason), results[1].reason


def test_numbers_beyond_half_precision_become_its_largest(tmp_path: Path) -> None:
    seen = changed(make_outputs(["1"])[0], features=with_first(1e6))
    (objects,) = source_of(write_lxmert(tmp_path, [seen])).objects([sample_of(seen)])
    assert isinstance(objects, np.ndarray)
    check_objects(objects)
    row = int(np.argsort(-seen.scores.astype(np.float16), kind="stable").tolist().index(0))
    assert objects["feature"][row].tolist() == [65504.0] * SIZE


def test_labels_beyond_the_names_are_refused(tmp_path: Path) -> None:
    """A vocabulary of another detector: one class fewer than the files have."""
    seen = make_output("1", np.random.default_rng(3), num=40)
    assert seen.labels.max() == len(LABELS) - 1
    written = write_lxmert(tmp_path, [seen])
    Path(written["labels"]).write_text("\n".join(LABELS[:-1]))
    assert reason_of(written, seen) == "features: labels: number 4, expected 0 to 3"
    written = write_d2(tmp_path, [seen])
    Path(written["labels"]).write_text("\n".join(LABELS[:-1]))
    assert "class probabilities: shape (40, 5), expected (40, 4)" in reason_of(written, seen)
    written = write_coco(tmp_path, [seen])
    categories = json.loads(Path(written["labels"]).read_text())
    categories["categories"].pop()
    Path(written["labels"]).write_text(json.dumps(categories))
    with pytest.raises(FeaturesError, match="category_id 5; expected .* 1 to 4"):
        reason_of(written, seen)
    written = write_scene_graph(tmp_path, [seen])
    Path(written["labels"]).write_text(
        json.dumps({"label_to_idx": {"yolk": 1}, "attribute_to_idx": {"tall": 1}})
    )
    assert "is not among the names" in reason_of(written, seen, num_top=1)


def test_coco_s_own_ids_are_not_the_lines_of_its_80_names(tmp_path: Path) -> None:
    """COCO's categories have the numbers 1 to 90. Oracle: its list: 13 is the stop sign, which
    stands in line 12; ids that fill the gaps, or lie before them, are lines."""
    names, path = tmp_path / "names.txt", tmp_path / "bbox.json"
    names.write_text("\n".join(["person", *(f"thing {n}" for n in range(2, 80)), "toothbrush"]))
    config = FeaturesConfig(format="coco-json", path=str(path), labels=str(names))

    def open_ids(*ids: int) -> CocoJson:
        box = {"image_id": 1, "bbox": [0, 0, 9, 9], "score": 0.5}
        path.write_text(json.dumps([{**box, "category_id": number} for number in ids]))
        labels = read_names(str(names), field="labels", section="label")
        return CocoJson(config, labels, folder=None, show=False)

    for of_coco in ((13,), (1, 3, 44, 80)):
        with pytest.raises(
            FeaturesError, match=f"category_id {of_coco[-1]} and none of 12, .*JSON"
        ):
            open_ids(*of_coco)
    for lines in ((1, 11), (1, 12, 80)):
        open_ids(*lines)


def test_what_the_recipe_asks_for_and_the_file_lacks(tmp_path: Path) -> None:
    (seen,) = make_outputs(["1"])
    assert "class probabilities: none in it" in reason_of(
        write_lxmert(tmp_path, [seen]), seen, num_top=2
    )
    info = {k: v for k, v in files.caffe_info(seen).items() if not k.startswith("attrs")}
    written = write_caffe(tmp_path, [seen])
    (path,) = tmp_path.glob("*.npz")
    path.write_bytes(files.butd_npz(seen, info))
    assert "attributes: none in it" in reason_of(written, seen)
    assert reason_of(write_lxmert(tmp_path, [seen]), seen, feature_size=7) == (
        "features: features: 6 values each, expected 7 (distill.features.feature_size)"
    )


def test_boxes_are_as_many_as_said(tmp_path: Path) -> None:
    (seen,) = make_outputs(["1"])
    written = write_caffe(tmp_path, [seen])
    (path,) = tmp_path.glob("*.npz")
    num = len(seen.boxes)
    path.write_bytes(
        files.npz_bytes(
            x=seen.features, bbox=seen.boxes, num_bbox=num + 1, info=files.caffe_info(seen)
        )
    )
    assert f"bbox: shape ({num}, 4), expected {num + 1} boxes" in reason_of(written, seen)
    for bbox in (np.array(3.0), seen.boxes[0], seen.boxes[:, :3]):
        path.write_bytes(files.npz_bytes(x=seen.features, bbox=bbox, info=files.caffe_info(seen)))
        assert "bbox: shape (" in reason_of(written, seen)


def test_shares_have_to_span_the_sides_beside_them() -> None:
    """x, y, width, height in another order are not taken for corners; half precision is."""
    sound = np.array([[0.1, 0.2, 0.7, 0.9, 0.6, 0.7]], np.float16)
    assert np.array_equal(_corners(sound), sound[:, :4].astype(np.float32))
    with_area = np.hstack([sound, sound[:, 4:5] * sound[:, 5:]])
    assert _corners(with_area).shape == (1, 4)
    for bad in (np.array([[0.1, 0.2, 0.6, 0.7, 0.7, 0.9]]), sound * np.nan):
        with pytest.raises(RowError, match="norm_bb: width and height"):
            _corners(bad)
    with pytest.raises(RowError, match="norm_bb: 4 values"):
        _corners(sound[:, :4])


def test_scores_that_are_one_half_keep_the_order_of_the_file(tmp_path: Path) -> None:
    """0.50001 and 0.50002 are the same number in half precision."""
    seen = make_output("1", np.random.default_rng(0), num=3)
    seen.probabilities[:] = 0
    seen.probabilities[:, 0] = (0.50001, 0.50002, 0.7)
    (objects,) = source_of(write_lxmert(tmp_path, [seen])).objects([sample_of(seen)])
    assert isinstance(objects, np.ndarray)
    assert np.array_equal(objects["feature"], seen.features[[2, 0, 1]].astype(np.float16))


def test_boxes_of_a_resized_picture(tmp_path: Path) -> None:
    """Features of a picture of twice the size, and of one turned by a quarter; boxes by hand."""
    (seen,) = make_outputs(["1"])
    large = replace(seen, width=2 * seen.width + 1, height=2 * seen.height, boxes=seen.boxes * 2)
    (objects,) = source_of(write_lxmert(tmp_path, [large])).objects([sample_of(seen)])
    assert isinstance(objects, np.ndarray)
    order = np.argsort(-seen.scores.astype(np.float16), kind="stable")
    shrunk = 2 * seen.width / (2 * seen.width + 1)
    by_hand = seen.boxes[order] * np.array([shrunk, 1, shrunk, 1])
    assert np.allclose(objects["box"], by_hand, atol=1e-4)
    turned = replace(seen, width=seen.height, height=seen.width)
    assert "rotated by 90 degrees" in reason_of(write_lxmert(tmp_path, [turned]), seen)


def test_boxes_just_over_the_border_are_cut_at_it(tmp_path: Path) -> None:
    """A hundredth of the longer side is the most."""
    seen = replace(make_output("1", np.random.default_rng(0), num=1), width=50, height=40)
    for over_px, is_sound in ((0.49, True), (0.6, False)):
        box = np.array([[-over_px, 1, 50 + over_px, 39]], np.float32)
        written = write_lxmert(tmp_path, [replace(seen, boxes=box)])
        (objects,) = source_of(written).objects([sample_of(seen)])
        assert isinstance(objects, np.ndarray) == is_sound
        if isinstance(objects, np.ndarray):
            assert objects["box"].tolist() == [[0, 1, 50, 39]]


def test_rows_of_predictions_that_do_not_go_with_the_features(tmp_path: Path) -> None:
    seen = make_outputs(IDS)
    written = write_oscar(tmp_path, seen)
    more = make_output("2", np.random.default_rng(9), num=len(seen[1].boxes) + 1)
    rows = [files.predictions_row(each) for each in (seen[0], replace(more, id="2"))]
    (tmp_path / "predictions.tsv").write_bytes(b"".join(rows))
    first, second, third = source_of(written).objects(map(sample_of, seen))
    assert isinstance(first, np.ndarray)
    assert isinstance(second, Failure) and "of which the predictions have" in second.reason
    assert isinstance(third, Failure)
    assert third.reason == "features: predictions: no row of this id"


@pytest.mark.parametrize("rows", [2, 3])
def test_equal_rows_of_an_id_are_one(tmp_path: Path, rows: int) -> None:
    seen = make_outputs(IDS)
    written = write_lxmert(tmp_path, seen + [seen[1]] * (rows - 1))
    results = list(source_of(written).objects(map(sample_of, seen)))
    once = list(source_of(write_lxmert(tmp_path, seen)).objects(map(sample_of, seen)))
    assert all(np.array_equal(a, b) for a, b in zip(results, once, strict=True))


def test_rows_of_an_id_that_differ_are_refused_or_the_first_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As append-mode extractors leave them after a restart. Half a row beside a whole one is
    nobody's second opinion: the whole one counts."""
    seen = make_outputs(IDS)
    other = replace(seen[1], features=seen[1].features + 1)
    written = write_lxmert(tmp_path, [*seen, other])
    assert "2 rows of '2' say different things" in reason_of(written, seen[1])
    (first,) = source_of(written, duplicates="first").objects([sample_of(seen[1])])
    (alone,) = source_of(write_lxmert(tmp_path, seen)).objects([sample_of(seen[1])])
    assert np.array_equal(first, alone)
    rows = [files.lxmert_row(each) for each in seen]
    (tmp_path / "val.tsv").write_bytes(rows[1][:99] + b"\r\n" + b"".join(rows))
    object_source = source_of(written)
    (whole,) = object_source.objects([sample_of(seen[1])])
    assert np.array_equal(whole, alone)
    account = object_source.account([])
    assert (account.num_repeated, account.repeated) == (1, ("2",))


def test_rows_without_an_id_are_counted_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Base64 that lost its beginning has no tab; an empty line is nothing."""
    from stages.distill.precomputed.config import FeaturesConfig
    from stages.distill.precomputed.join import PrecomputedObjects

    seen = make_outputs(IDS)
    written = write_lxmert(tmp_path, seen)
    sound = (tmp_path / "val.tsv").read_bytes()
    (tmp_path / "val.tsv").write_bytes(b"QUJD\r\n\r\n" + sound + b"1" * 30)
    object_source = PrecomputedObjects(FeaturesConfig(**{**written, "feature_size": SIZE}))
    account = object_source.account([])
    assert account.num_without_id == 2
    assert account.without_id[0].startswith("val.tsv byte 0: no id and tab in b'QUJD")
    shown = capsys.readouterr().out
    assert "features: 3 ids in 3 rows; 2 rows have no id (val.tsv byte 0" in shown
    assert all(isinstance(r, np.ndarray) for r in object_source.objects(map(sample_of, seen)))


@pytest.mark.parametrize("num_cut", [1, 9, 500])
def test_detections_cut_short_are_refused(num_cut: int, tmp_path: Path) -> None:
    """Oracle: the places of a picture's detections are free, so a part of a file may lack some of
    any picture."""
    written = write_coco(tmp_path, make_outputs(IDS))
    text = (tmp_path / "bbox.json").read_text()
    (tmp_path / "bbox.json").write_text(text.rstrip()[:-num_cut])
    with pytest.raises(FeaturesError, match="cut short or no JSON from byte .*copy the file again"):
        source_of(written)
    (tmp_path / "bbox.json").write_text('{"annotations": []}')
    with pytest.raises(FeaturesError, match="distill.features.path is .*whose JSON is no list"):
        source_of(written)


FUZZED = {
    "val.tsv": write_lxmert,
    "predictions.tsv": write_scene_graph,
    "bbox.json": write_coco,
    "1.npz": write_d2,
}


@pytest.mark.parametrize("name", FUZZED)
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    cut=st.floats(0, 1), flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=3)
)
def test_no_damage_gets_past(
    tmp_path: Path, name: str, cut: float, flips: list[tuple[float, int]]
) -> None:
    """Files cut anywhere and with bytes changed: what comes out is a Failure or objects that the
    schema takes, and nothing but FeaturesError is raised, when the file is opened."""
    seen = make_outputs(IDS)
    written = FUZZED[name](tmp_path, seen)
    data = bytearray((tmp_path / name).read_bytes())
    del data[max(1, int(cut * len(data))) :]
    for at, flip in flips:
        data[int(at * (len(data) - 1))] ^= flip
    (tmp_path / name).write_bytes(data)
    try:
        results = list(source_of(written).objects(map(sample_of, seen)))
    except FeaturesError:
        return
    assert len(results) == 3
    for result in results:
        if isinstance(result, np.ndarray):
            check_objects(result)
            assert ((result["label"] >= 0) & (result["label"] < len(LABELS))).all()
        else:
            assert result.reason == "no features" or result.reason.startswith("features: ")


def test_msgpack_of_anything_but_numbers_is_refused() -> None:
    """msgpack-numpy itself would unpickle the first; the second claims more than it has."""
    array = {b"nd": True, b"type": "<f2", b"kind": b"", b"shape": [2, 3], b"data": bytes(12)}
    sound = {"features": array}
    assert read_msgpack(msgpack, msgpack.packb(sound))["features"].shape == (2, 3)
    as_text = {key.decode(): value for key, value in array.items()}  # older msgpack-numpy
    assert read_msgpack(msgpack, msgpack.packb({"features": as_text}))["features"].shape == (2, 3)
    for fields, reason in (
        ({b"type": "|O", b"kind": b"O", b"data": b"cos\nsystem\n"}, "dtype object"),
        ({b"shape": [2, 1 << 40]}, "12 bytes, expected"),
        ({b"shape": [-2, -3]}, "shape"),
        ({b"type": [["a", "<f2"]], b"kind": b"V"}, "type, shape or data"),
        ({b"type": "<q9"}, "dtype"),
        ({b"nd": False}, "expected an array"),
    ):
        with pytest.raises(RowError, match=f"features: .*{reason}"):
            read_msgpack(msgpack, msgpack.packb({"features": {**array, **fields}}))
    for data in (b"", b"\xc1", msgpack.packb([1]), msgpack.packb(sound)[:-1]):
        with pytest.raises(RowError, match="msgpack"):
            read_msgpack(msgpack, data)


def test_an_npz_takes_no_more_than_it_has() -> None:
    """Headers that claim other shapes and kinds, and files that are no zip."""
    with pytest.raises(RowError, match="no valid .npz"):
        read_npz(b"PK\x03\x04 and no more", ["x"])
    text = np.array(["a"])
    with pytest.raises(RowError, match="x: dtype <U1, expected numbers"):
        read_npz(files.npz_bytes(x=text), ["x"])
    fortran = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    assert np.array_equal(read_npz(files.npz_bytes(x=fortran), ["x"])["x"], fortran)
    assert read_npz(files.npz_bytes(x=fortran), ["y"]) == {}


def test_base64_has_to_be_just_as_long() -> None:
    array = np.arange(6, dtype="<f4").reshape(2, 3)
    coded = files.base64_of(array, "<f4")
    assert np.array_equal(from_base64(coded, dtype="<f4", shape=(2, -1), name="x"), array)
    assert from_base64(b"", dtype="<f4", shape=(0, -1), name="x").shape == (0, 0)
    for shape in ((3, 3), (5, -1), (0, -1)):
        with pytest.raises(RowError, match="x: 24 bytes, expected"):
            from_base64(coded, dtype="<f4", shape=shape, name="x")


def test_an_lmdb_cut_short_does_not_kill_the_process(tmp_path: Path) -> None:
    """Reading a memory map beyond the file's end would."""
    lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed (boxless[features])")
    environment = lmdb.open(str(tmp_path / "all"), map_size=1 << 24)
    with environment.begin(write=True) as transaction:
        transaction.put(b"1.npz", bytes(100_000))
    environment.close()
    written = {
        "format": "uniter-lmdb",
        "path": str(tmp_path / "all"),
        "id": "stem",
        "labels": files.write_names(tmp_path)["labels"],
    }
    assert "neither .npz nor msgpack" in reason_of(written, make_outputs(["1"])[0])
    data = (tmp_path / "all" / "data.mdb").read_bytes()
    for size, reason in ((50_000, "cut short"), (100, "no LMDB")):
        (tmp_path / "all" / "data.mdb").write_bytes(data[:size])
        with pytest.raises(FeaturesError, match=f"distill.features.path is .*{reason}"):
            source_of(written)


def test_a_missing_package_is_named() -> None:
    with pytest.raises(FeaturesError, match=r"takes the package nowhere_to_be_found.*\[features\]"):
        find_package("nowhere_to_be_found")
