"""`boxless export`. Oracles: transformers' eager attention, the standard library's own reader of
pickles, the packages lmdb, lz4 and msgpack, and the reader of SOHO's checkpoints."""

from __future__ import annotations

import pickle
import pickletools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from student_folders import TEXT, TINY, picture_file, student_folder, student_of
from transformers.models.bert.modeling_bert import eager_attention_forward
from view_shards import CAPTION, folder_of, info, sample

from pipeline.cli.main import main
from pipeline.export.plain_pickle import pickled
from pipeline.export.vl_interpret import example_of
from pipeline.pages.student.inputs import ExampleInputs, open_student
from stages.student.build import make_student
from stages.student.vision.image_transforms import load_picture, stack_pictures
from stages.student.vision.neck_config import DictionaryConfig, SohoNeckConfig

SOHO = replace(
    TINY,
    mlm_head="tied",
    itm_head="linear",
    neck=SohoNeckConfig(dictionary=DictionaryConfig(num_codes=8)),
)


def test_a_pickle_is_plain_and_of_no_version_of_numpy() -> None:
    """Oracle: the standard library reads it back; the only names in it are those of NumPy 1 and 2
    alike, and arrays can be written to, as VL-InterpreT does."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    value = {"a": array, "b": [(0, 1), "text", True, 2.5], "c": array[:0].astype(np.uint8)}
    data = pickled(value)
    again = pickle.loads(data)
    assert again["b"] == value["b"] and again.keys() == value.keys()
    for name in "ac":
        assert again[name].dtype == value[name].dtype  # type: ignore[attr-defined]
        np.testing.assert_array_equal(again[name], value[name])
    again["a"][:] = 0
    codes = [(code.name, argument) for code, argument, _ in pickletools.genops(data)]
    texts = {argument for name, argument in codes if name == "SHORT_BINUNICODE"}
    assert texts <= {
        "a",
        "b",
        "c",
        "text",
        "numpy",
        "ndarray",
        "builtins",
        "bytearray",
        "<f4",
        "|u1",
    }
    with pytest.raises(TypeError, match="Path"):
        pickled(Path())


@torch.no_grad()
def test_an_example_holds_what_the_viewer_wants(tmp_path: Path) -> None:
    """Oracle: the forms and the order of VL-InterpreT's db_example.py; the attention of the last
    layer by transformers' eager attention of the state before it; the picture's colours cell by
    cell. 80 x 60 is seen at 43 x 32, padded to 48 x 32: 2 rows of 3 cells, the last part black."""
    predictor = open_student(student_folder(tmp_path / "student"))
    file = picture_file(tmp_path / "picture.png")
    (given,) = ExampleInputs(pictures=(file,), texts=(TEXT,)).examples()
    found = example_of(predictor, given, 7)
    num_text = len(predictor.tokenizer(TEXT)["input_ids"])
    assert found["ex_id"] == 7 and found["txt_len"] == num_text and "accuracy" not in found
    assert found["tokens"][0] == "[CLS]" and found["tokens"][num_text - 1] == "[SEP]"
    assert found["tokens"][num_text:] == [f"IMG_{i}" for i in range(6)]
    assert found["img_coords"] == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    size = num_text + 6
    assert found["attention"].shape == (2, 2, size, size)
    assert found["hidden_states"].shape == (3, size, 32)
    np.testing.assert_allclose(found["attention"].sum(axis=-1), 1, rtol=1e-5)
    layer = predictor.student.fusion.layer[1].attention.self
    before = torch.from_numpy(found["hidden_states"][1])[None]
    query, key, value = (
        part(before).view(1, size, 2, 16).transpose(1, 2)
        for part in (layer.query, layer.key, layer.value)
    )
    _, weights = eager_attention_forward(layer, query, key, value, None, layer.scaling)
    np.testing.assert_allclose(found["attention"][1], weights[0], rtol=1e-4, atol=1e-6)
    image = found["image"]
    assert image.shape == (2 * 64, 3 * 64, 3) and image.dtype == np.uint8
    assert image[32, 32].tolist() == [255, 0, 0] and image[96, 128].tolist() == [0, 0, 255]
    assert image[64, 188].tolist() == [0, 0, 0]


@torch.no_grad()
def test_states_are_those_of_the_student(tmp_path: Path) -> None:
    """Oracle: the student asked as everywhere; its outputs are the last state."""
    predictor = open_student(student_folder(tmp_path / "student"))
    file = picture_file(tmp_path / "picture.png")
    (given,) = ExampleInputs(pictures=(file,), texts=(TEXT,)).examples()
    found = example_of(predictor, given, 0)
    array = load_picture(file.read_bytes(), shorter_px=32, longer_px=64)
    pictures = stack_pictures([array], multiple_px=16)
    cells = predictor.student.encode_image(pictures.pixels, pictures.sizes_px)
    ids, _ = predictor.read([TEXT])
    hidden = predictor.student.fuse(cells, picture=torch.zeros(1, dtype=torch.long), input_ids=ids)
    last = torch.cat([hidden.text[0], hidden.cells[0]])
    np.testing.assert_allclose(found["hidden_states"][-1], last, rtol=1e-4, atol=1e-5)


def test_the_database_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Oracle: packages and the standard library, in VL-InterpreT's order (lz4, msgpack, pickle).
    A false caption is rightly told where the student's match is below one half."""
    lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed (boxless[interpret])")
    lz4 = pytest.importorskip("lz4.frame", reason="lz4 is not installed (boxless[interpret])")
    msgpack = pytest.importorskip("msgpack", reason="msgpack is not installed")
    reported = info(truth={"captions": [False]})
    shards = folder_of(tmp_path / "shards", [sample("a"), sample("b", info=reported)])
    student, out = student_folder(tmp_path / "student"), tmp_path / "out"
    asked = ["export", str(student), "--to", "vl-interpret", "--out", str(out)]
    assert main([*asked, "--shards", str(shards)]) == 0
    assert "2 examples" in capsys.readouterr().out
    with lmdb.open(str(out), readonly=True, lock=False) as environment:
        with environment.begin() as transaction:
            found = {
                key.decode(): msgpack.unpackb(lz4.decompress(value), raw=False)
                for key, value in transaction.cursor()
            }
    assert found.keys() == {"0", "1", "n_examples"} and found["n_examples"] == 0
    examples = [pickle.loads(found[key]) for key in "01"]
    assert [one["ex_id"] for one in examples] == [0, 1]
    predictor = open_student(student)
    for one, given in zip(examples, ExampleInputs(shards=str(shards)).examples()):
        wanted = example_of(predictor, given, one["ex_id"])
        assert given.text == CAPTION and one.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_array_equal(one[name], value)
    assert examples[0]["accuracy"] != examples[1]["accuracy"]
    assert main([*asked, "--shards", str(shards)]) == 2
    assert "which is there already" in capsys.readouterr().err


def test_nothing_is_left_of_a_database_that_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A picture that is none, met after a good one."""
    pytest.importorskip("lz4.frame", reason="lz4 is not installed (boxless[interpret])")
    student = student_folder(tmp_path / "student")
    good, bad = picture_file(tmp_path / "good.png"), tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    asked = ["export", str(student), "--to", "vl-interpret", "--out", str(tmp_path / "out")]
    for file in (good, bad):
        asked += ["--picture", str(file), "--text", TEXT]
    assert main(asked) == 2
    assert "bad.png: got PictureError" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"student", "good.png", "bad.png"}


def test_a_soho_checkpoint_goes_there_and_back(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Oracle: a new student that starts from the file has the same weights, bit by bit (its own
    heads aside); a student that is not built as SOHO's, or is none, is refused."""
    folder, out = student_folder(tmp_path / "student", SOHO), tmp_path / "soho.pth"
    assert main(["export", str(folder), "--to", "soho", "--out", str(out)]) == 0
    student = student_of(SOHO)
    again = make_student(
        replace(SOHO, soho_checkpoint=str(out)),
        vocab_size=student.config.bert["vocab_size"],
        pad_id=0,
        label_names=["circle"],
        feature_size=4,
    )
    ours = ("object_head", "neck.dictionary.age", "neck.dictionary.started")
    for name, weight in again.state_dict().items():
        assert name.startswith(ours) or torch.equal(weight, student.state_dict()[name]), name
    plain = student_folder(tmp_path / "plain")
    for given, words in (
        ([str(plain), "--out", str(tmp_path / "b.pth")], "neck.kind"),
        ([str(folder), "--out", str(out)], "which is there already"),
        ([str(tmp_path), "--out", str(tmp_path / "b.pth")], "expected a student's folder"),
        ([str(folder), "--out", str(tmp_path / "no" / "b.pth")], "a folder that exists"),
        ([str(folder), "--out", str(tmp_path / "b.pth"), "--text", "x"], "with --to vl-interpret"),
    ):
        capsys.readouterr()
        assert main(["export", *given, "--to", "soho"]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "given, words",
    [
        ({}, "expected --picture FILE"),
        ({"pictures": (Path("a"),), "shards": "b"}, "expected one of them"),
        ({"pictures": (Path("a"),)}, "0 --text"),
        ({"pictures": (Path("a"),) * 2, "texts": ("x",) * 3}, "as many of each"),
        ({"shards": "b", "texts": ("x",)}, "captions of the shards"),
        ({"pictures": (Path("a"),), "texts": ("x",), "keys": ("k",)}, "with --shards"),
        ({"shards": "b", "num": 0}, "expected 1 to"),
    ],
)
def test_what_is_given_is_checked(given: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ExampleInputs(**given)


def test_one_of_either_is_for_all(tmp_path: Path) -> None:
    files = tuple(picture_file(tmp_path / f"{name}.png") for name in "ab")
    for pictures, texts, pairs in (
        (files, ("x",), [("a", "x"), ("b", "x")]),
        (files[:1], ("x", "y"), [("a", "x"), ("a", "y")]),
        (files, ("x", "y"), [("a", "x"), ("b", "y")]),
    ):
        examples = ExampleInputs(pictures=pictures, texts=texts).examples()
        assert [(one.sample.key, one.text) for one in examples] == pairs
