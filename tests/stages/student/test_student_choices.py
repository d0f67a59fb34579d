"""What KD-VLP leaves open of the student: what stands for a phrase, and for a hidden cell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretrain_fixtures import TINY, tiny_student

from stages.student.network import Student

PIECES = torch.tensor([[[0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [1, 0, 1, 1, 0], [0, 0, 0, 0, 0]]]).bool()


def test_a_phrase_is_the_mean_of_its_pieces_or_the_last() -> None:
    """Oracle: by hand on pieces 0 to 4 whose vectors are 1, 2, 4, 8, 16; none give 0."""
    text = torch.tensor([1.0, 2, 4, 8, 16])[None, :, None]
    for pooling, wanted in (("mean", [3, 8, 13 / 3, 0]), ("last", [4, 8, 8, 0])):
        student = tiny_student(replace(TINY, phrase_pooling=pooling))
        got = student.pool_phrases(PIECES, text)[0, :, 0]
        assert got.tolist() == pytest.approx(wanted), pooling


def test_a_hidden_cell_is_a_learned_vector_or_zero(tmp_path: Path) -> None:
    """Oracle: a learned vector has a gradient where cells are hidden, `zero` has none (so
    that it stays as it starts, at zero); the choice is kept with the student."""
    for kind in ("learned", "zero"):
        student = tiny_student(replace(TINY, mask_cell=kind))
        cells = student.encode_image(torch.randn(1, 3, 32, 32), torch.tensor([[32, 32]]))
        hidden = student.fuse(
            cells,
            picture=torch.tensor([0]),
            input_ids=torch.tensor([[2, 7, 3]]),
            masked_cells=torch.tensor([[True, False, False, False]]),
        )
        hidden.text.square().sum().backward()
        assert (student.mask_cell.grad is not None) == (kind == "learned")
        student.save_pretrained(tmp_path / kind)
        assert Student.from_pretrained(tmp_path / kind).config.mask_cell == kind
