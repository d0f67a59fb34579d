"""`boxless export --to onnx`: the same answers by ONNX Runtime, and nearly the same in int8."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distill_fakes import make_sample, write_images
from pretrain_fixtures import TINY, tiny_student, toy_tokenizer

from pipeline.export import int8_export
from pipeline.export.int8_export import Int8Config, export_int8
from pipeline.export.int8_report import Int8Report, scores_of
from pipeline.export.onnx_files import export_onnx
from pipeline.export.onnx_student import OnnxStudent
from pipeline.pages.student.inputs import InputError
from sharding.format.schema import Sample
from stages.student.network import Student
from stages.student.processor import StudentProcessor
from stages.transfer.evaluation.retrieval import score_matrix
from stages.transfer.metrics.retrieval_recall import recalls
from stages.transfer.predictor import Predictor

TEXTS = ["a red circle", "a blue square left of a green circle"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Student, Path]:
    """A student and the folder of its files."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra onnx)")
    student = tiny_student(
        dataclasses.replace(TINY, itc_size=16, itc_text_layers=(0, -1), cell_stages=(-2, -1))
    )
    folder = tmp_path_factory.mktemp("student")
    student.save_pretrained(folder / "student")
    StudentProcessor.of(student, toy_tokenizer()).save_pretrained(folder / "student")
    export_onnx(folder / "student", folder / "onnx")
    return student, folder / "onnx"


def _run(path: Path, **inputs: torch.Tensor) -> list[np.ndarray]:
    runtime: Any = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in inputs.items()})


@pytest.mark.parametrize("size", [(60, 40), (33, 64), (64, 64)])
def test_onnx_runtime_gives_the_same_logits_and_vectors(
    exported: tuple[Student, Path], size: tuple[int, int]
) -> None:
    """Pictures of sizes other than the one exported with, one text and two, of unlike length.
    Oracle: `Student.forward` and the contrastive head, within 1e-4."""
    student, folder = exported
    processor = StudentProcessor.from_pretrained(folder)
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (*size, 3), dtype=np.uint8)
    for texts in (TEXTS[:1], TEXTS):
        given = dict(processor([picture], texts))
        pixels, ids = given["pixel_values"], given["input_ids"]
        cells, inside, vector = _run(
            folder / "picture.onnx", pixel_values=pixels, sizes_px=given["sizes_px"]
        )
        (logits,) = _run(
            folder / "pair.onnx",
            cells=torch.from_numpy(np.repeat(cells, len(texts), axis=0)),
            inside=torch.from_numpy(np.repeat(inside, len(texts), axis=0)),
            input_ids=ids,
            token_type_ids=torch.zeros_like(ids),
        )
        with torch.no_grad():
            wanted = student(pixels, given["sizes_px"], ids).logits
            np.testing.assert_allclose(logits, wanted.numpy(), atol=1e-4)
            image = student.embed_pictures(student.encode_image(pixels, given["sizes_px"]))
            np.testing.assert_allclose(vector, image.numpy(), atol=1e-4)
            (text_vectors,) = _run(folder / "text.onnx", input_ids=ids)
            np.testing.assert_allclose(text_vectors, student.embed_texts(ids).numpy(), atol=1e-4)


def test_a_folder_that_is_there_is_left_alone(exported: tuple[Student, Path]) -> None:
    """Oracle: InputError that names it."""
    _, folder = exported
    with pytest.raises(InputError, match="which is there already"):
        export_onnx(folder.parent / "student", folder)


WORDS = "red blue green yellow circle square star moon cross ring".split()


def _captioned(num: int) -> list[Sample]:
    """Noise, each with a caption of its own."""
    random = np.random.default_rng(0)
    captions = [f"a {' '.join(random.choice(WORDS, 4))}" for _ in range(num)]
    return [make_sample(f"s{i}", [text], random) for i, text in enumerate(captions)]


def _text(sample: Sample) -> str:
    return sample.info["captions"][0]


@pytest.fixture(scope="module")
def integers(
    exported: tuple[Student, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Int8Report]:
    """The int8 folder of the same student, and what was reported; its float files are the ones
    above, which take longest to make."""
    _, floats = exported
    folder = tmp_path_factory.mktemp("int8")
    write_images(folder / "images", {"heldout-000000.tar": _captioned(12)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8_export, "export_onnx", lambda _, out: shutil.copytree(floats, out))
        config = Int8Config(shards=folder / "images", num_calibrated=6, num_scored=6)
        report = export_int8(floats.parent / "student", folder / "int8", config, show=False)
    return folder / "int8", report


def test_scores_by_onnx_runtime_are_those_of_evaluate(exported: tuple[Student, Path]) -> None:
    """Oracle: recalls of evaluate's own matrix, of the float student."""
    student, folder = exported
    samples = _captioned(7)
    plain = Predictor(student=student.eval(), tokenizer=toy_tokenizer())
    matrix = score_matrix(plain, samples, [_text(one) for one in samples], query_bank=False)
    wanted = recalls(matrix, torch.arange(7))
    found = scores_of(OnnxStudent(folder), samples, [_text(one) for one in samples], title=None)
    assert len(found) == 12  # 1, 5, 10 both ways by both heads
    assert {name: found[f"contrastive {name}"] for name in wanted} == {
        name: entry["value"] for name, entry in wanted.items()
    }


def test_int8_files_hold_int8_weights_and_answer_alike(
    exported: tuple[Student, Path], integers: tuple[Path, Int8Report]
) -> None:
    """Oracle: the graph's own constants, a matrix or kernel in float being the exception; and the
    float files' log odds and vectors, within a tenth of their spread."""
    onnx: Any = pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
    (_, floats), (folder, report) = exported, integers
    for name in report.file_bytes:
        graph = onnx.load(folder / name).graph
        made = [onnx.numpy_helper.to_array(one) for one in graph.initializer]
        assert sum(one.dtype == np.int8 and one.ndim >= 2 for one in made) >= 2, name
        # A scale a channel.
        assert any(one.dtype == np.float32 and one.ndim == 1 and one.size >= 8 for one in made)
    samples = _captioned(12)
    found = []
    for student in (OnnxStudent(floats), OnnxStudent(folder)):
        texts = student.text_inputs([_text(one) for one in samples])
        seen = [student.encode(student.picture_inputs(one.image)) for one in samples]
        odds = np.stack([student.log_odds(one, texts) for one in seen])
        vectors = np.concatenate([student.text_vectors(texts), *(one.vectors for one in seen)])
        found.append((odds, vectors))
    for before, after in zip(*found):
        assert np.abs(after - before).mean() < 0.1 * (before.std() + np.abs(before).mean())


def test_int8_reports_every_score_beside_float(integers: tuple[Path, Int8Report]) -> None:
    """Oracle: the fields: of 12 pictures 6 calibrate and 6 are scored, as asked; a line each for
    12 scores, 3 files and 3 times; int8.json says the same."""
    folder, report = integers
    assert (report.num_calibrated, report.num_scored) == (6, 6)
    assert len(report.scores) == 12 and len(report.file_bytes) == len(report.milliseconds) == 3
    assert len(list(report.lines())) == 1 + 12 + 3 + 3
    assert json.loads((folder / "int8.json").read_text()) == json.loads(
        json.dumps(report.as_json())
    )
    assert StudentProcessor.from_pretrained(folder)


def test_int8_of_too_few_pictures_is_refused(tmp_path: Path) -> None:
    """Oracle: InputError that says how many there are and are expected."""
    write_images(tmp_path / "images", {"heldout-000000.tar": _captioned(5)})
    with pytest.raises(InputError, match="got 5 held-out .*, expected 6 or more"):
        export_int8(tmp_path, tmp_path / "out", Int8Config(shards=tmp_path / "images"))
    with pytest.raises(InputError, match="--shards: "):
        export_int8(tmp_path, tmp_path / "out", Int8Config(shards=tmp_path / "none"))
    with pytest.raises(InputError, match="num_scored: got 1, expected 2 or more"):
        Int8Config(shards=tmp_path, num_scored=1)
