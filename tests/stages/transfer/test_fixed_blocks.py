"""Blocks of fixed shape: what is in them, and that threads come back."""

from __future__ import annotations

import torch

from stages.transfer.fixed_blocks import FixedBlock, fixed_blocks, fixed_threads


def test_blocks_by_hand() -> None:
    """Oracle: on paper: lengths 3, 9, 4, 5, 4 in steps of 4, rows by two; 9 is the longest that is
    read, and is not padded to 12."""
    shape = {"num_rows": 2, "length_step": 4, "max_length": 9}
    assert fixed_blocks([3, 9, 4, 5, 4], **shape) == [
        FixedBlock(members=(0, 2), rows=(0, 2), length=4),
        FixedBlock(members=(4,), rows=(4, 4), length=4),
        FixedBlock(members=(3,), rows=(3, 3), length=8),
        FixedBlock(members=(1,), rows=(1, 1), length=9),
    ]
    assert [block.members for block in fixed_blocks([3, 9, 4, 5, 4], of=[4, 1], **shape)] == [
        (4,),
        (1,),
    ]
    assert fixed_blocks([], **shape) == []


def test_rows_are_padded_or_cut() -> None:
    """Oracle: by hand."""
    tokens = torch.tensor([[1, 2, 9], [3, 9, 9]])
    block = FixedBlock(members=(1,), rows=(1, 1), length=2)
    assert block.cut(tokens).tolist() == [[3, 9], [3, 9]]
    block = FixedBlock(members=(0,), rows=(0,), length=5)
    assert block.cut(tokens, 9).tolist() == [[1, 2, 9, 9, 9]]
    assert block.cut(tokens > 2, False).tolist() == [[False, False, True, False, False]]


def test_threads_come_back() -> None:
    """Oracle: PyTorch's number inside and after."""
    before = torch.get_num_threads()
    with fixed_threads(3):
        assert torch.get_num_threads() == 3
        with fixed_threads(0):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == before
