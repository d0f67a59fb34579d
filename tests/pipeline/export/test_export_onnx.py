"""`boxless export --to onnx`: the same answers by ONNX Runtime."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretrain_fixtures import TINY, tiny_student, toy_tokenizer

from pipeline.export.onnx_files import export_onnx
from pipeline.pages.student.inputs import InputError
from stages.student.network import Student
from stages.student.processor import StudentProcessor

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
