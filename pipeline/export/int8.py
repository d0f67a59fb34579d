"""Int8 versions of a student's ONNX files, by static quantisation: `boxless export --int8`.

Convolutions and linear layers get weights of 8 bits, each output channel with a scale of its own,
and inputs of 8 bits, with scales from pictures and captions that the student was not trained on.
Files are in the QDQ form, of which ONNX Runtime makes integer kernels. All else stays float:
attention between positions, softmax, LayerNorm, embeddings and the residual sums of the fusion.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.export.onnx_files import PICTURE, TEXT
from pipeline.export.onnx_student import OnnxStudent, pair_inputs
from sharding.format.schema import Sample

Feed = dict[str, np.ndarray]
# Sums of a residual block are of like ranges, and in integers the block is in one piece.
PICTURE_OPERATORS = ("Conv", "Relu", "Add", "MaxPool", "MatMul", "Gemm")
FUSION_OPERATORS = ("MatMul", "Gemm")


def quantize_folder(
    floats: Path, out: Path, samples: Sequence[Sample], texts: Sequence[str]
) -> None:
    """Write the int8 version of each file in `floats`, a folder of export_onnx, into the folder
    `out`, with ranges from `samples` with the text of each."""
    student = OnnxStudent(floats)
    for name in student.file_names:
        feeds = _feeds(name, student, samples, texts)
        operators = PICTURE_OPERATORS if name == PICTURE else FUSION_OPERATORS
        _quantize(floats / name, out / name, _Feeds(feeds), operators)


def _feeds(
    name: str, student: OnnxStudent, samples: Sequence[Sample], texts: Sequence[str]
) -> Iterator[Feed]:
    """What a file is fed, a picture at a time: each picture with its own text and with another's,
    as scoring meets both."""
    for number, sample in enumerate(samples):
        if name == PICTURE:
            yield student.picture_inputs(sample.image)
            continue
        pair = student.text_inputs([texts[number], texts[number - 1]])
        if name == TEXT:
            yield {"input_ids": pair["input_ids"]}
        else:
            yield pair_inputs(student.encode(student.picture_inputs(sample.image)), pair)


class _Feeds:
    """Feeds as onnxruntime's calibrator asks for them (a CalibrationDataReader)."""

    def __init__(self, feeds: Iterator[Feed]) -> None:
        self._feeds = feeds

    def get_next(self) -> Feed | None:
        """The next feed; None after the last."""
        return next(self._feeds, None)


def _quantize(source: Path, target: Path, feeds: _Feeds, operators: Sequence[str]) -> None:
    """One file."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder) / source.name
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            target,
            feeds,
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(operators),
            per_channel=True,
            # 7 bits: without VNNI two products of 8 bits overflow the 16 bits they are added in.
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            extra_options={
                "MatMulConstBOnly": True,
                # What a linear layer gives is added up in float, so it is not rounded once more.
                "OpTypesToExcludeOutputQuantization": list(FUSION_OPERATORS),
            },
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice that onnxruntime prints and logs."""
    root: Any = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
