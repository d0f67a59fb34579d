"""`stages.distill.precomputed`: each public layout, written by hand, becomes the objects it says.

Oracle throughout: the numbers that the file was made of, brought to half precision where objects
have it and put in the order of falling scores by numpy.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import features_files as files
import numpy as np
import pytest
from features_files import ATTRIBUTES, LABELS, SIZE, TeacherOutput, make_outputs, sample_of

from sharding.format.schema import Failure, check_objects, object_dtype
from stages.distill.precomputed.config import FeaturesConfig
from stages.distill.precomputed.formats.record import FeaturesError
from stages.distill.precomputed.join import PrecomputedObjects

IDS = ("42", "7", "1000012")

Written = dict[str, Any]


def write_lxmert(folder: Path, seen: list[TeacherOutput]) -> Written:
    (folder / "val.tsv").write_bytes(b"".join(map(files.lxmert_row, seen)))
    return {"format": "butd-tsv", "path": str(folder / "val.tsv"), **files.write_names(folder)}


def write_butd(folder: Path, seen: list[TeacherOutput]) -> Written:
    """In two files, as several GPUs left them."""
    (folder / "t.tsv.0").write_bytes(files.butd_row(seen[0]))
    (folder / "t.tsv.1").write_bytes(b"".join(map(files.butd_row, seen[1:])))
    return {"format": "butd-tsv", "path": str(folder / "t.tsv.*")}


def write_caffe(folder: Path, seen: list[TeacherOutput]) -> Written:
    for each in seen:
        data = files.butd_npz(each, files.caffe_info(each))
        (folder / f"COCO_val2014_{int(each.id):012}.npz").write_bytes(data)
    return {"format": "butd-npz", "path": str(folder), "id": "number", **files.write_names(folder)}


def write_d2(folder: Path, seen: list[TeacherOutput]) -> Written:
    for each in seen:
        (folder / f"{each.id}.npz").write_bytes(files.butd_npz(each, files.d2_info(each)))
    names = files.write_names(folder)
    return {"format": "butd-npz", "path": str(folder), "num_top": 3, **names}


def write_scene_graph(folder: Path, seen: list[TeacherOutput]) -> Written:
    (folder / "predictions.tsv").write_bytes(b"".join(map(files.scene_graph_row, seen)))
    names = files.write_labelmap(folder / "labelmap.json")
    return {
        "format": "vinvl-tsv",
        "path": str(folder / "predictions.tsv"),
        "num_top": 3,
        "labels": names,
        "attributes": names,
    }


def write_oscar(folder: Path, seen: list[TeacherOutput]) -> Written:
    """Features and predictions in different orders; the features tell the box's place too."""
    (folder / "features.tsv").write_bytes(b"".join(map(files.oscar_row, seen)))
    (folder / "predictions.tsv").write_bytes(b"".join(map(files.predictions_row, seen[::-1])))
    names = files.write_labelmap(folder / "labelmap.json")
    return {
        "format": "vinvl-tsv",
        "path": str(folder / "features.tsv"),
        "predictions": str(folder / "predictions.tsv"),
        "labels": names,
        "attributes": names,
    }


def write_oscar_captions(folder: Path, seen: list[TeacherOutput]) -> Written:
    (folder / "val.feature.tsv").write_bytes(b"".join(map(files.oscar_caption_row, seen)))
    (folder / "val.label.tsv").write_bytes(b"".join(map(files.label_row, seen)))
    return {
        "format": "vinvl-tsv",
        "path": str(folder / "val.feature.tsv"),
        "predictions": str(folder / "val.label.tsv"),
        **files.write_names(folder),
    }


def write_coco(folder: Path, seen: list[TeacherOutput]) -> Written:
    """The detections of the pictures mixed, as sorting by score would."""
    entries = [entry for each in seen for entry in files.coco_entries(each)]
    (folder / "bbox.json").write_text(json.dumps(entries[::2] + entries[1::2]))
    return {
        "format": "coco-json",
        "path": str(folder / "bbox.json"),
        "labels": files.write_categories(folder / "instances.json"),
    }


def write_uniter(
    folder: Path, seen: list[TeacherOutput], encode: Callable[[TeacherOutput], bytes]
) -> Written:
    lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed (boxless[features])")
    environment = lmdb.open(str(folder / "all"), map_size=1 << 24)
    with environment.begin(write=True) as transaction:
        for each in seen:
            transaction.put(f"coco_val2014_{int(each.id):012}.npz".encode(), encode(each))
        transaction.put(b"__keys__", b"[]")
    environment.close()
    return {
        "format": "uniter-lmdb",
        "path": str(folder / "all"),
        "id": "number",
        "num_top": 2,
        "labels": files.write_names(folder)["labels"],
    }


def write_uniter_npz(folder: Path, seen: list[TeacherOutput]) -> Written:
    return write_uniter(folder, seen, files.uniter_npz)


def write_uniter_msgpack(folder: Path, seen: list[TeacherOutput]) -> Written:
    return write_uniter(folder, seen, files.uniter_msgpack)


WRITERS = (
    write_lxmert,
    write_butd,
    write_caffe,
    write_d2,
    write_scene_graph,
    write_oscar,
    write_oscar_captions,
    write_coco,
    write_uniter_npz,
    write_uniter_msgpack,
)


def source_of(written: Written, **fields: Any) -> PrecomputedObjects:
    return PrecomputedObjects(
        FeaturesConfig(**{"feature_size": SIZE, **written, **fields}), show=False
    )


def expected_of(seen: TeacherOutput, written: Written) -> np.ndarray:
    """What the layout can say of `seen`, as objects."""
    num_top, is_labelled = written.get("num_top", 1), written.get("labels") is not None
    dtype = object_dtype(feature_size=SIZE, num_top=num_top, attributes="attributes" in written)
    objects = np.zeros(len(seen.boxes), dtype)
    objects["box"], objects["feature"] = seen.boxes, seen.features
    objects["score"] = seen.scores if is_labelled else 1
    objects["label"] = seen.labels if is_labelled else 0
    if num_top == 1:
        objects["top_label"] = objects["label"][:, None]
        objects["top_score"] = objects["score"][:, None]
    else:
        top = np.argsort(-seen.probabilities, axis=1)[:, :num_top]
        objects["top_label"] = top
        objects["top_score"] = np.take_along_axis(seen.probabilities, top, 1)
    if "attributes" in written:
        objects["attribute"], objects["attribute_score"] = seen.attributes, seen.attribute_scores
    return objects[np.argsort(-objects["score"], kind="stable")]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_layout_says_what_was_written(
    tmp_path: Path, write: Callable[[Path, list[TeacherOutput]], Written]
) -> None:
    """Boxes of shares in half precision are off by up to 2^-11 of the picture's longer side."""
    seen = make_outputs(IDS)
    written = write(tmp_path, seen)
    object_source = source_of(written)
    box_px = 60 / 2048 if written["format"] == "uniter-lmdb" else 1e-5
    for each, objects in zip(
        seen, object_source.objects([sample_of(each) for each in seen]), strict=True
    ):
        assert isinstance(objects, np.ndarray), objects
        check_objects(objects)
        expected = expected_of(each, written)
        assert objects.dtype == expected.dtype
        assert np.abs(objects["box"] - expected["box"]).max() <= box_px
        for name in set(expected.dtype.names or ()) - {"box"}:
            assert np.array_equal(objects[name], expected[name]), name
    assert tuple(object_source.label_names) == (LABELS if "labels" in written else ("object",))
    assert tuple(object_source.attribute_names) == (ATTRIBUTES if "attributes" in written else ())
    assert object_source.feature_size == SIZE


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_pictures_and_features_alone_are_reported(
    tmp_path: Path, write: Callable[[Path, list[TeacherOutput]], Written]
) -> None:
    """Two of three pictures are asked for, and one that nobody looked at."""
    seen = make_outputs(IDS)
    object_source = source_of(write(tmp_path, seen))
    samples = [sample_of(each) for each in (seen[0], *make_outputs(["43"]), seen[1])]
    results = list(object_source.objects(samples))
    assert results[1] == Failure(key="k-43", reason="no features")
    assert [isinstance(result, Failure) for result in results] == [False, True, False]
    account = object_source.account((sample.key, sample.info) for sample in samples)
    assert (account.num_pictures, account.num_pictures_without_features) == (3, 1)
    assert (account.num_features, account.num_features_without_pictures) == (3, 1)
    assert "1000012" in account.features_without_pictures[0]
    assert "1 of 3 pictures have no features, 1 of 3 features have no picture" in str(account)


def test_rows_of_six_columns_have_no_classes(tmp_path: Path) -> None:
    """Labels that a file does not have cannot be joined, and classes are not thrown away."""
    seen = make_outputs(IDS)
    names = files.write_names(tmp_path)
    with pytest.raises(FeaturesError, match="distill.features.labels is .* have no classes"):
        source_of({**write_butd(tmp_path, seen), **names})
    with pytest.raises(FeaturesError, match="distill.features.labels is null, but .*ten"):
        source_of({**write_lxmert(tmp_path, seen), "labels": None, "attributes": None})


def test_a_broken_first_row_does_not_tell_the_layout(tmp_path: Path) -> None:
    """Six of LXMERT's ten columns, as a row that was cut off has."""
    seen = make_outputs(IDS)
    written = write_lxmert(tmp_path, seen)
    sound = (tmp_path / "val.tsv").read_bytes()
    cut = b"\t".join(sound.split(b"\t")[:6]) + b"\r\n"
    (tmp_path / "val.tsv").write_bytes(cut + sound[sound.index(b"\n") + 1 :])
    failed, *others = source_of(written).objects(map(sample_of, seen))
    assert isinstance(failed, Failure)
    assert failed.reason.startswith("features: columns: 6, expected 10")
    assert all(isinstance(objects, np.ndarray) for objects in others)


def test_the_same_detection_twice_is_one(tmp_path: Path) -> None:
    """As two files that were merged have it."""
    (seen,) = make_outputs(["7"])
    written = write_coco(tmp_path, [seen])
    (tmp_path / "bbox.json").write_text(json.dumps(2 * files.coco_entries(seen)))
    (objects,) = source_of(written).objects([sample_of(seen)])
    assert isinstance(objects, np.ndarray)
    assert len(objects) == len(seen.boxes)


def test_features_without_predictions_are_not_enough(tmp_path: Path) -> None:
    for write in (write_oscar, write_oscar_captions):
        with pytest.raises(FeaturesError, match="predictions is null.*no boxes and classes"):
            source_of({**write(tmp_path, make_outputs(IDS)), "predictions": None})


def test_detections_without_features(tmp_path: Path) -> None:
    """A single 0 stands for each."""
    (seen,) = make_outputs(["7"])
    (tmp_path / "bbox.json").write_text(json.dumps(files.coco_entries(seen, features=False)))
    written = {
        "format": "coco-json",
        "path": str(tmp_path / "bbox.json"),
        "labels": files.write_categories(tmp_path / "instances.json"),
    }
    (objects,) = source_of(written, feature_size=None).objects([sample_of(seen)])
    assert isinstance(objects, np.ndarray)
    assert objects["feature"].tolist() == [[0.0]] * len(seen.boxes)
    (failed,) = source_of(written).objects([sample_of(seen)])
    assert isinstance(failed, Failure) and "feature: none in a detection" in failed.reason


def test_python_3_in_a_script_of_python_2(tmp_path: Path) -> None:
    """Fields written as b'...' are read as what is in the quotes."""
    (seen,) = make_outputs(["7"])
    fields = files.lxmert_row(seen).rstrip().split(b"\t")
    quoted = [f if i in (0, 1, 2, 7) else b"b'" + f + b"'" for i, f in enumerate(fields)]
    (tmp_path / "val.tsv").write_bytes(b"\t".join(quoted) + b"\r\n")
    written = write_lxmert(tmp_path, [seen])
    (tmp_path / "val.tsv").write_bytes(b"\t".join(quoted) + b"\r\n")
    (objects,) = source_of(written).objects([sample_of(seen)])
    assert isinstance(objects, np.ndarray)
    assert np.array_equal(objects, expected_of(seen, written))


def test_confidence_0_is_no_attribute(tmp_path: Path) -> None:
    """py-bottom-up-attention writes zeros for attributes that it does not know."""
    (seen,) = make_outputs(["7"])
    row = files.lxmert_row(seen).split(b"\t")
    row[6] = files.base64_of(np.zeros(len(seen.boxes)), "<f4")
    written = write_lxmert(tmp_path, [seen])
    (tmp_path / "val.tsv").write_bytes(b"\t".join(row))
    (objects,) = source_of(written).objects([sample_of(seen)])
    assert isinstance(objects, np.ndarray)
    assert set(objects["attribute"].tolist()) == {-1}


def test_background_of_given_boxes_goes_to_the_best_class(tmp_path: Path) -> None:
    """d2's bbox_feats takes the argmax over all logits; the background comes after the classes."""
    (seen,) = make_outputs(["7"])
    info = {**files.d2_info(seen), "objects": np.full(len(seen.boxes), len(LABELS))}
    written = write_d2(tmp_path, [seen])
    (tmp_path / "7.npz").write_bytes(files.butd_npz(seen, info))
    (objects,) = source_of(written).objects([sample_of(seen)])
    assert isinstance(objects, np.ndarray)
    assert np.array_equal(objects, expected_of(seen, written))


class Hostile:
    """Would make a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    """As `info`, and as an array of objects where numbers belong."""
    (seen,) = make_outputs(["7"])
    written, trap = write_caffe(tmp_path, [seen]), tmp_path / "trapped"
    (path,) = tmp_path.glob("*.npz")
    hostile = np.array([Hostile(trap)], object)
    for data, reason in (
        (files.butd_npz(seen, Hostile(trap)), "features: info: .*pathlib"),
        (files.npz_bytes(x=hostile, bbox=seen.boxes, info={}), "features: x: an array of objects"),
    ):
        path.write_bytes(data)
        (failed,) = source_of(written).objects([sample_of(seen)])
        assert isinstance(failed, Failure)
        assert re.match(reason, failed.reason), failed.reason
        assert not trap.exists()
    pickle.loads(pickle.dumps(Hostile(trap)))
    assert trap.exists()  # it would have worked
