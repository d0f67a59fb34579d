"""Checkpoints from elsewhere: one teacher whatever the file, and a reason for each that is
unsound."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from checkpoints import ATTRIBUTES, LABELS, NUM_ATTRIBUTES, c4_weights, write_names

from stages.detector.checkpoints.checkpoint_error import CheckpointError
from stages.detector.checkpoints.convert import convert, read_checkpoint
from stages.detector.checkpoints.families import FAMILIES
from stages.detector.checkpoints.names_file import read_names
from stages.detector.checkpoints.weights import read_net
from stages.detector.predictor import Teacher
from stages.detector.teacher_folder import copy_teacher, load_teacher, read_about

WEIGHTS = c4_weights()
Weights = dict[str, np.ndarray]


class Touches:
    """Makes a file when a pickle of it is loaded by Python."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def tensors(weights: Weights) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in weights.items()}


def save_pickle(weights: Weights, path: Path) -> None:
    with open(path, "wb") as file:
        pickle.dump({"model": weights, "__author__": "somebody", "matching_heuristics": True}, file)


def save_torch(value: Any, path: Path, *, is_zip: bool = True) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=is_zip)


def trained(weights: Weights) -> dict[str, Any]:
    """What detectron2's trainer leaves: the model, and much beside it, numpy's numbers too."""
    model = OrderedDict(tensors(weights))
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.02}]}
    return {
        "model": model,
        "optimizer": optimizer,
        "iteration": 89999,
        "scheduler": {"_last_lr": [np.float64(0.02)], "milestones": np.array([1, 2])},
    }


KINDS: dict[str, Callable[[Weights, Path], None]] = {
    "x.pkl": save_pickle,
    "bare.pkl": lambda weights, path: path.write_bytes(pickle.dumps(weights, 2)) and None,
    "x.pth": lambda weights, path: save_torch(trained(weights), path),
    "old.pth": lambda weights, path: save_torch(trained(weights), path, is_zip=False),
    "numpy.pth": lambda weights, path: save_torch({"model": weights}, path),
    "parallel.pt": lambda weights, path: save_torch(
        {"state_dict": {f"module.{name}": tensor for name, tensor in tensors(weights).items()}},
        path,
    ),
    "x.safetensors": lambda weights, path: safetensors.torch.save_file(tensors(weights), path),
    "misnamed.pkl": lambda weights, path: save_torch({"model": tensors(weights)}, path),
}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_out_of_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    """Oracle: the arrays that went in, bit for bit; nothing that lies beside them."""
    KINDS[kind](WEIGHTS, tmp_path / kind)
    got = read_checkpoint(tmp_path / kind)
    assert got.keys() == WEIGHTS.keys()
    for name, array in WEIGHTS.items():
        assert got[name].dtype == array.dtype and got[name].tobytes() == array.tobytes(), name


def run(
    checkpoint: Path,
    out: Path,
    *,
    family: str = "detectron2",
    labels: list[str] | None = None,
    attributes: list[str] | None = None,
    license: str = "unknown",
) -> str:
    """convert, with files of names."""
    folder = checkpoint.parent
    named = LABELS if labels is None else labels
    return convert(
        checkpoint,
        family=FAMILIES[family],
        out=out,
        license=license,
        log=lambda step: None,
        labels=write_names(folder / "labels.txt", named),
        attributes=attributes and write_names(folder / "attributes.txt", attributes) or None,
    )


def test_one_teacher_comes_of_the_same_weights_in_any_file(tmp_path: Path) -> None:
    """Oracle: equal fingerprints and weights, byte for byte, which hold what read_net gives."""
    fingerprints = set()
    for number, (kind, save) in enumerate(KINDS.items()):
        save(WEIGHTS, tmp_path / kind)
        fingerprints.add(run(tmp_path / kind, tmp_path / str(number)))
    assert len(fingerprints) == 1
    assert (
        len(
            {
                (tmp_path / str(number) / "model.safetensors").read_bytes()
                for number in range(len(KINDS))
            }
        )
        == 1
    )
    teacher = load_teacher(tmp_path / "0")
    assert isinstance(teacher, Teacher) and {teacher.fingerprint} == fingerprints
    assert (teacher.label_names, teacher.attribute_names) == (LABELS, [])
    config, state = read_net(WEIGHTS, FAMILIES["detectron2"])
    assert teacher.model.config == config
    for name, tensor in teacher.model.state_dict().items():
        assert torch.equal(tensor.cpu(), state[name]), name
    save_pickle(c4_weights(seed=1), tmp_path / "x.pkl")
    assert run(tmp_path / "x.pkl", tmp_path / "other") not in fingerprints


def test_a_folder_says_what_it_is(tmp_path: Path) -> None:
    """Oracle: what was given, the SHA-256 of the file by Python, and sizes counted by hand; the
    card does not touch the fingerprint."""
    weights = c4_weights(num_attributes=NUM_ATTRIBUTES)
    save_pickle(weights, tmp_path / "x.pkl")
    first = run(
        tmp_path / "x.pkl",
        tmp_path / "out",
        family="vg-d2",
        attributes=ATTRIBUTES,
        license="CC BY 4.0, https://example.org",
    )
    about = read_about(tmp_path / "out")
    assert about.card is not None and about.sizes is not None
    assert dataclasses.asdict(about.card) == {
        "family": "vg-d2",
        "source": "x.pkl",
        "license": "CC BY 4.0, https://example.org",
        "source_sha256": hashlib.sha256((tmp_path / "x.pkl").read_bytes()).hexdigest(),
    }
    # Normalisation is folded: four numbers a channel become the one of a bias.
    num_folded = sum(array.size for name, array in weights.items() if ".norm." in name) * 3 // 4
    assert dataclasses.asdict(about.sizes) == {
        "num_labels": 5,
        "num_attributes": 3,
        "feature_size": 40,
        "num_parameters": sum(array.size for array in weights.values()) - num_folded,
    }
    assert (about.labels, about.attributes) == (LABELS, ATTRIBUTES)
    page = (tmp_path / "out" / "CARD.md").read_text()
    for words in ("vg-d2", "x.pkl", "CC BY 4.0", first, "labels: 5", "attributes: 3"):
        assert words in page
    assert first == run(
        tmp_path / "x.pkl",
        tmp_path / "again",
        family="vg-d2",
        attributes=ATTRIBUTES,
        license="unknown",
    )


def test_a_run_takes_the_folder_as_it_is(tmp_path: Path) -> None:
    """Oracle: every file of the folder, byte for byte, where a recipe's teach.given copies it."""
    save_pickle(WEIGHTS, tmp_path / "x.pkl")
    run(tmp_path / "x.pkl", tmp_path / "out")
    copy_teacher(tmp_path / "out", tmp_path / "copy")
    files = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert len(files) == 4
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "copy").iterdir()}


def damaged(weights: Weights, **changes: Any) -> Weights:
    """`weights` with other arrays, or without those that are None."""
    return {name: array for name, array in {**weights, **changes}.items() if array is not None}


def with_nan(name: str) -> Weights:
    array = WEIGHTS[name].copy()
    array.flat[3] = np.nan
    return damaged(WEIGHTS, **{name: array})


PREDICTOR = "roi_heads.box_predictor.cls_score.weight"


@pytest.mark.parametrize(
    "weights, options, reported",
    [
        (
            WEIGHTS,
            {"labels": [*LABELS, "more"]},
            "labels.txt: got 6 names, the weights have 5 classes",
        ),
        (WEIGHTS, {"attributes": ATTRIBUTES}, r"got 3 names, the weights have 0 attributes; leave"),
        (
            c4_weights(num_attributes=3),
            {"family": "vg-d2"},
            "attributes: got none, the weights have 3",
        ),
        (
            c4_weights(num_attributes=3),
            {"family": "vg-d2", "attributes": ["red"]},
            "attributes.txt: got 1 names, the weights have 3",
        ),
        (with_nan(PREDICTOR), {}, f"x.pkl: .*not finite: {PREDICTOR}"),
        (damaged(WEIGHTS, **{PREDICTOR: None}), {}, f"x.pkl: .*{PREDICTOR}"),
        (damaged(WEIGHTS, more=np.ones(3, "f4")), {}, "x.pkl: .*no known part: more"),
        (damaged(WEIGHTS, **{PREDICTOR: WEIGHTS[PREDICTOR].T}), {}, f"x.pkl: .*{PREDICTOR}"),
        (WEIGHTS, {"family": "vg-caffe"}, "fit the family detectron2 or vg-d2"),
        (WEIGHTS, {"license": " "}, "license: got ' ', expected .*unknown"),
        (WEIGHTS, {"labels": ["a", "", "c", "d", "e"]}, "labels.txt: got no name in place 2 of 5"),
        (WEIGHTS, {"labels": ["a", "b", "a", "d", "e"]}, "labels.txt: got 'a' more than once"),
        (WEIGHTS, {"labels": []}, "labels.txt: got no names"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(
    weights: Weights, options: dict[str, Any], reported: str, tmp_path: Path
) -> None:
    """Oracle: an error that names the file or option at fault, and no teacher."""
    save_pickle(weights, tmp_path / "x.pkl")
    with pytest.raises(ValueError, match=f"(?s){reported}"):
        run(tmp_path / "x.pkl", tmp_path / "out", **options)
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    """Oracle: the error names the folder, whose config.json stays."""
    save_pickle(WEIGHTS, tmp_path / "x.pkl")
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(CheckpointError, match="holds a config.json already"):
        run(tmp_path / "x.pkl", tmp_path)
    assert (tmp_path / "config.json").read_text() == "mine"


def bomb(path: Path) -> None:
    """An archive whose storage grows a thousandfold on reading."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(1 << 22))


def expand(path: Path) -> None:
    """A tensor of a million numbers that are all the same one."""
    save_torch({"model": {"a": torch.ones(1).expand(1 << 20)}}, path)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file": (lambda path: None, "No such file"),
    "a folder": (lambda path: path.mkdir(), "Is a directory"),
    "nothing": (lambda path: path.write_bytes(b""), "begins with b''"),
    "a web page": (lambda path: path.write_bytes(b"<!DOCTYPE html><html>"), "web site"),
    "zeros": (lambda path: path.write_bytes(bytes(1000)), "begins with"),
    "a picture": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(90)), "begins with"),
    "another archive": (lambda path: zipfile.ZipFile(path, "w").writestr("a", "b"), "torch.save"),
    "a bomb": (bomb, "says it holds 41943"),
    "an expanded tensor": (expand, "not arrays, as a"),
    "a sparse tensor": (
        lambda path: save_torch({"a": torch.eye(3).to_sparse()}, path),
        "not arrays",
    ),
    "a model": (lambda path: save_torch(torch.nn.Linear(1, 1), path), "asks for 'torch.nn.modules"),
    "a list": (lambda path: save_torch([torch.ones(1)], path), "a list, expected"),
    "numbers as names": (lambda path: save_torch({1: torch.ones(1)}, path), "a dict, expected"),
    "no weights": (lambda path: save_torch({"model": {}}, path), "nothing, expected"),
    "text": (lambda path: path.write_bytes(pickle.dumps({"a": "b"})), "not arrays, as a .str."),
    "Caffe2's blobs": (
        lambda path: path.write_bytes(pickle.dumps({"blobs": WEIGHTS}, 2)),
        "Caffe2",
    ),
    "safetensors cut off": (
        lambda path: path.write_bytes(safetensors.torch.save({"a": torch.ones(9)})[:-4]),
        "no valid safetensors",
    ),
    "safetensors that lie": (
        lambda path: path.write_bytes(
            b"\x3a"
            + bytes(7)
            + b'{"a":{"dtype":"F32","shape":[99],"data_offsets":[0,396]}} '
            + bytes(4)
        ),
        "no valid safetensors",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_that_is_no_checkpoint_is_refused_with_the_reason(kind: str, tmp_path: Path) -> None:
    """Oracle: CheckpointError that begins with the path and says why."""
    make, reported = WRONG[kind]
    make(tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=f"x.pth: got .*{reported}") as error:
        read_checkpoint(tmp_path / "x.pth")
    assert "weights_only" not in str(error.value)  # torch's advice would have them run it


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_hostile_file_of_torch_is_not_run(is_zip: bool, tmp_path: Path) -> None:
    """Oracle: CheckpointError with the name asked for, and no file; torch's own reader, told to
    trust the file, makes it, so it is hostile."""
    path = tmp_path / "x.pth"
    save_torch({"model": {"a": torch.ones(1), "b": Touches(tmp_path / "ran")}}, path, is_zip=is_zip)
    with pytest.raises(CheckpointError, match="asks for 'posix.system'"):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["x.pkl", "x.pth", "old.pth", "x.safetensors"])
def test_a_file_cut_off_anywhere_is_refused(kind: str, tmp_path: Path) -> None:
    """Oracle: CheckpointError that begins with the path, for beginnings of all lengths."""
    path = tmp_path / kind
    KINDS[kind]({"a": np.ones((3, 4), np.float32), "b": np.zeros(2, np.float32)}, path)
    data = path.read_bytes()
    for num_bytes in range(0, len(data), 5):
        path.write_bytes(data[:num_bytes])
        with pytest.raises(CheckpointError, match=f"{kind}: got "):
            read_checkpoint(path)


def test_names_are_read_with_their_synonyms(tmp_path: Path) -> None:
    """Oracle: lines of Visual Genome's objects_vocab.txt, and the same as JSON; a mark of UTF-8 at
    the front, a missing line end and blanks do not count."""
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffyolk\nstop sign, stopsign \r\ncafé".encode())
    names = ["yolk", "stop sign,stopsign", "café"]
    assert read_names(path) == names
    path.with_suffix(".json").write_text(json.dumps(names))
    assert read_names(path.with_suffix(".json")) == names


@pytest.mark.parametrize(
    "name, data, reported",
    [
        ("x.txt", b"caf\xe9\n", "UTF-8"),
        ("x.txt", b"__background__\na\n", "background is not"),
        ("x.json", b'{"a": 1}', "a dict, expected"),
        ("x.json", b"[1]", "a list of other things"),
        ("x.json", b"[", "expected JSON"),
        ("none.txt", None, "No such file"),
    ],
)
def test_a_file_of_names_that_is_none_is_refused(
    name: str, data: bytes | None, reported: str, tmp_path: Path
) -> None:
    """Oracle: CheckpointError that names the file and says why."""
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{name}: got .*{reported}"):
        read_names(tmp_path / name)
