"""Tiny student folders for tests of `boxless inspect` and `boxless export`."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import torch
from PIL import Image

from stages.student.build import make_student
from stages.student.config import StudentConfig
from stages.student.network import Student
from stages.student.processor import StudentProcessor
from stages.student.text.tokenizer import train_tokenizer

TEXT = "a red circle left of a blue square"
TINY = StudentConfig(
    stem_width=8,
    widths=(8, 16),
    depths=(1, 1),
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    ffn_size=32,
    vocab_size=150,
    max_tokens=24,
    shorter_px=32,
    longer_px=64,
)
"""Cells of 16 pixels, two layers, two heads."""


@functools.lru_cache(maxsize=4)
def student_of(config: StudentConfig = TINY) -> Student:
    """A student with random weights; read it only."""
    torch.manual_seed(0)
    student = make_student(
        config,
        vocab_size=len(_tokenizer()),
        pad_id=0,
        label_names=["circle", "square"],
        feature_size=4,
    )
    return student.eval()


@functools.lru_cache(maxsize=1)
def _tokenizer():  # type: ignore[no-untyped-def]
    return train_tokenizer([TEXT, "two green moons"], vocab_size=TINY.vocab_size)


def student_folder(folder: Path, config: StudentConfig = TINY) -> Path:
    """Saved as pretrain saves it."""
    student_of(config).save_pretrained(folder)
    StudentProcessor.of(student_of(config), _tokenizer()).save_pretrained(folder)
    return folder


def picture_file(path: Path, width: int = 80, height: int = 60) -> Path:
    """A PNG, red at the left and blue at the right."""
    image = Image.new("RGB", (width, height), (255, 0, 0))
    image.paste((0, 0, 255), (width // 2, 0, width, height))
    out = io.BytesIO()
    image.save(out, "PNG")
    path.write_bytes(out.getvalue())
    return path
