"""`boxless export STUDENT --to onnx --int8`: a folder of int8 files, with what they change."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from boxless.errors import BoxlessError
from pipeline.export.int8 import quantize_folder
from pipeline.export.int8_report import Int8Report, compare
from pipeline.export.onnx_files import export_onnx
from pipeline.pages.student.inputs import InputError
from sharding.format.schema import Sample
from sharding.writing.atomic import write_json
from stages.atomic_folder import replace_folder
from stages.student.processor import StudentProcessor
from stages.transfer.evaluation.evaluate import true_captions
from stages.transfer.predictor import read_split

REPORT = "int8.json"
FEWEST_PICTURES = 2


@dataclass(frozen=True, kw_only=True)
class Int8Config:
    """Where ranges and scores come from.

    shards: folder of image or object shards, of which the held-out ones are read; a picture counts
        with its first true caption.
    num_calibrated: pictures that ranges are taken from; where there are too few for both numbers,
        what those to score leave of them, and a third of all at least.
    num_scored: further pictures, each of which is scored with the captions of all.
    """

    shards: Path
    num_calibrated: int = 64
    num_scored: int = 200

    def __post_init__(self) -> None:
        for name in ("num_calibrated", "num_scored"):
            if getattr(self, name) < FEWEST_PICTURES:
                raise InputError(
                    f"{name}: got {getattr(self, name)}, expected {FEWEST_PICTURES} or more"
                )


def export_int8(student: Path, out: Path, config: Int8Config, *, show: bool = True) -> Int8Report:
    """Write the int8 files, the processor and int8.json into `out`, a new folder.

    Raises InputError as export_onnx, where onnxruntime is not installed, and where the shards hold
    too few pictures with captions; ShardError on damaged shards.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise InputError(
            "--int8: got no package onnxruntime, expected those of the extra onnx: "
            "pip install 'boxless[onnx]'"
        )
    calibrating, scored = _pictures(config)
    with tempfile.TemporaryDirectory() as folder:
        floats = Path(folder) / "float"
        export_onnx(student, floats)
        reports: list[Int8Report] = []

        def write(temporary: str) -> None:
            target = Path(temporary)
            StudentProcessor.from_pretrained(floats).save_pretrained(target)
            quantize_folder(floats, target, *calibrating)
            reports.append(
                compare(floats, target, *scored, num_calibrated=len(calibrating[0]), show=show)
            )
            write_json(target / REPORT, reports[0].as_json())

        replace_folder(out, write)
    return reports[0]


def _pictures(
    config: Int8Config,
) -> tuple[tuple[Sequence[Sample], list[str]], tuple[Sequence[Sample], list[str]]]:
    """Pictures with a text each, to calibrate with and to score."""
    try:
        samples = read_split(config.shards, "heldout", config.num_calibrated + config.num_scored)
    except BoxlessError as error:
        raise InputError(f"--shards: {error}") from error
    with_text = [
        (sample, texts[0]) for sample in samples if (texts := true_captions([sample], 1)[0])
    ]
    num = len(with_text)
    num_calibrated = min(config.num_calibrated, max(num - config.num_scored, num // 3))
    if num_calibrated < FEWEST_PICTURES:
        raise InputError(
            f"--shards: got {num} held-out pictures with true captions in "
            f"{config.shards}, expected {3 * FEWEST_PICTURES} or more: a third to take ranges from, "
            "the others to score; a larger ingest.heldout_fraction holds out more"
        )
    parts = (with_text[:num_calibrated], with_text[num_calibrated:])
    first, second = (([s for s, _ in part], [text for _, text in part]) for part in parts)
    return first, second
