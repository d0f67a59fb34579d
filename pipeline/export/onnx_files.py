"""Exports a student to ONNX.

    picture.onnx   pixel_values float [N, 3, H, W], sizes_px int64 [N, 2]
                   -> cells float [N, C, D], inside bool [N, C]; vectors [N, E] where the student
                   has a contrastive head
    pair.onnx      cells [B, C, D], inside [B, C], input_ids int64 [B, T], token_type_ids [B, T]
                   -> logits [B, 2], "does not belong" and "belongs"
    text.onnx      input_ids [B, T] -> vectors [B, E], of unit length as a picture's; only with a
                   contrastive head
    processor.json and the tokenizer, as in a student folder: `StudentProcessor` reads them.

N, B, T, H and W are free; H and W are multiples of the processor's `pad_px`. Pictures of one batch
must round up to the same H and W (StudentProcessor pads a picture alone to exactly that).
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from pipeline.pages.student.inputs import InputError, open_student
from stages.atomic_folder import replace_folder
from stages.student.fusion.text_encoder import encode_together
from stages.student.network import Student
from stages.student.processor import StudentProcessor

OPSET = 20
PICTURE, PAIR, TEXT = "picture.onnx", "pair.onnx", "text.onnx"
_MOST = 1 << 14


class PictureNet(nn.Module):
    """Pictures that fill their tensor -> cells as they enter the fusion."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, pixel_values: torch.Tensor, sizes_px: torch.Tensor) -> tuple[Any, ...]:
        """pixel_values [N, 3, H, W], sizes_px [N, 2] -> cells [N, C, D], inside [N, C], and the
        contrastive head's vectors [N, E] where there is one."""
        student = self.student
        maps = student.grid.maps(pixel_values)
        cells = student.encode_image(pixel_values, sizes_px, maps=maps)
        # len() of a tensor would fix the number of pictures in the export.
        placed = student._placed(cells.features, cells, torch.arange(pixel_values.shape[0]))
        if student.contrastive_head is None:
            return placed, cells.inside
        return placed, cells.inside, student.embed_pictures(cells)


class PairNet(nn.Module):
    """Cells and texts through the fusion, to the matching head's logits."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(
        self,
        cells: torch.Tensor,
        inside: torch.Tensor,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor,
    ) -> torch.Tensor:
        """cells [B, C, D], inside [B, C], input_ids and token_type_ids [B, T] -> logits [B, 2]."""
        student = self.student
        hidden = torch.cat([student.embeddings(input_ids, token_type_ids), cells], dim=1)
        attended = torch.cat([input_ids != student.pad_id, inside], dim=1)[:, None, None, :]
        hidden = student._through_layers(hidden, attended, None)
        return student.itm_head(hidden[:, 0])


class TextNet(nn.Module):
    """Texts to the contrastive head's vectors."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """input_ids [B, T] -> unit vectors [B, E]."""
        student = self.student
        encoded = encode_together(
            student.embeddings,
            student.fusion,
            input_ids,
            input_ids != student.pad_id,
            student.config.itc_text_layers,
        )
        return student.embed_texts(input_ids, encoded)


def export_onnx(student: Path, out: Path) -> list[str]:
    """Write the files into `out`, a new folder; their names. Raises InputError where there is no
    student, where `out` is there already, and without the packages of the extra `onnx`."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"--to onnx: got no package {' and '.join(missing)}, expected those of the extra onnx: "
            "pip install 'boxless[onnx]'"
        )
    if out.exists():
        raise InputError(f"out: got {str(out)!r}, which is there already; expected a new folder")
    opened = open_student(student)
    programs = dict(_programs(_without_reads(opened.student)))
    processor = StudentProcessor.of(opened.student, opened.tokenizer)

    def write(temporary: str) -> None:
        for name, program in programs.items():
            program.save(str(Path(temporary) / name))
        processor.save_pretrained(temporary)

    replace_folder(out, write)
    return list(programs)


def _without_reads(student: Student) -> Student:
    """A copy in which nothing of the forward pass hangs on a value in a tensor."""
    copied = copy.deepcopy(student).float().eval()
    if (dictionary := copied.dictionary) is not None:
        started = bool(dictionary.started)
        del dictionary.started
        dictionary.started = started
    return copied


def _programs(student: Student) -> Iterator[tuple[str, Any]]:
    """File names and ONNX programs."""
    pad = student.grid.pad_px
    sizes = torch.tensor([[2 * pad, 3 * pad]] * 2)
    pictures = (torch.zeros(2, 3, 2 * pad, 3 * pad), sizes)
    num, text = Dim("num", max=_MOST), Dim("pieces", max=_MOST)
    height, width = (Dim(name, max=_MOST // pad) for name in ("rows", "columns"))
    has_vectors = student.contrastive_head is not None
    yield (
        PICTURE,
        _program(
            PictureNet(student),
            pictures,
            ({0: num, 2: pad * height, 3: pad * width}, {0: num}),
            ["pixel_values", "sizes_px"],
            ["cells", "inside", *(["vectors"] if has_vectors else [])],
        ),
    )
    with torch.no_grad():
        cells, inside, *_ = PictureNet(student)(*pictures)
    input_ids = torch.full((2, 5), 3)
    places = Dim("cells", max=_MOST)
    yield (
        PAIR,
        _program(
            PairNet(student),
            (cells, inside, input_ids, torch.zeros_like(input_ids)),
            ({0: num, 1: places}, {0: num, 1: places}, {0: num, 1: text}, {0: num, 1: text}),
            ["cells", "inside", "input_ids", "token_type_ids"],
            ["logits"],
        ),
    )
    if has_vectors:
        yield (
            TEXT,
            _program(
                TextNet(student), (input_ids,), ({0: num, 1: text},), ["input_ids"], ["vectors"]
            ),
        )


def _program(
    net: nn.Module,
    given: tuple[torch.Tensor, ...],
    free: tuple[dict[int, Any], ...],
    inputs: list[str],
    outputs: list[str],
) -> Any:
    """One network as an ONNX program; `given` are inputs of any size, `free` their free axes."""
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own packages
        program = torch.onnx.export(
            net.eval(),
            given,
            dynamo=True,
            dynamic_shapes=free,
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None, "dynamo=True returns the program"
    return program
