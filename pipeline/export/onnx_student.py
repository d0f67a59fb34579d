"""A student's ONNX files at work, by ONNX Runtime on the CPU.

Letters: N pictures, M texts, B texts of a pass, C cells, D width, E size of a vector, T pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.export.onnx_files import PAIR, PICTURE, TEXT
from stages.student.processor import StudentProcessor

TEXTS_PER_PASS = 32


class SeenPicture(NamedTuple):
    """What picture.onnx gives of one picture: cells [1, C, D], inside [1, C], and vectors [1, E]
    where the student has a contrastive head."""

    cells: np.ndarray
    inside: np.ndarray
    vectors: np.ndarray | None = None


class OnnxStudent:
    """The files of a folder that `export_onnx` wrote.

    num_threads: of each pass; 0 leaves ONNX Runtime's choice.
    """

    def __init__(self, folder: Path, *, num_threads: int = 0) -> None:
        self.processor = StudentProcessor.from_pretrained(folder)
        self._picture = _session(folder / PICTURE, num_threads)
        self._pair = _session(folder / PAIR, num_threads)
        self._text = _session(folder / TEXT, num_threads) if (folder / TEXT).exists() else None

    @property
    def has_vectors(self) -> bool:
        """Whether the student has a contrastive head."""
        return self._text is not None

    @property
    def file_names(self) -> list[str]:
        """Of the ONNX files that the student has."""
        return [PICTURE, PAIR] + [TEXT] * self.has_vectors

    def picture_inputs(self, image: bytes) -> dict[str, np.ndarray]:
        """What picture.onnx takes of one encoded picture."""
        given = self.processor([image])
        return {name: given[name].numpy() for name in ("pixel_values", "sizes_px")}

    def text_inputs(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """input_ids and token_type_ids [B, T] of texts, padded to the longest."""
        given = self.processor(texts=list(texts))
        return {name: given[name].numpy() for name in ("input_ids", "token_type_ids")}

    def encode(self, inputs: dict[str, np.ndarray]) -> SeenPicture:
        """A picture, of `picture_inputs`."""
        return SeenPicture(*self._picture.run(None, inputs))

    def log_odds(self, seen: SeenPicture, texts: dict[str, np.ndarray]) -> np.ndarray:
        """How well texts, of `text_inputs`, belong to a picture, by the matching head: [B]."""
        (logits,) = self._pair.run(None, pair_inputs(seen, texts))
        return logits[:, 1] - logits[:, 0]

    def text_vectors(self, texts: dict[str, np.ndarray]) -> np.ndarray:
        """Unit vectors of texts, of `text_inputs`, by the contrastive head: [B, E]."""
        assert self._text is not None, "asked of a student without a contrastive head"
        (vectors,) = self._text.run(None, {"input_ids": texts["input_ids"]})
        return vectors


def pair_inputs(seen: SeenPicture, texts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What pair.onnx takes of one picture with texts, of `text_inputs`."""
    num = len(texts["input_ids"])
    return {
        "cells": np.repeat(seen.cells, num, axis=0),
        "inside": np.repeat(seen.inside, num, axis=0),
        **texts,
    }


def text_passes(
    student: OnnxStudent, texts: Sequence[str]
) -> list[tuple[list[int], dict[str, np.ndarray]]]:
    """Texts in passes of like length: the numbers of some and their inputs, the shortest first."""
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    passes = []
    for first in range(0, len(order), TEXTS_PER_PASS):
        numbers = order[first : first + TEXTS_PER_PASS]
        passes.append((numbers, student.text_inputs([texts[number] for number in numbers])))
    return passes


def _session(path: Path, num_threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3  # errors alone
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
