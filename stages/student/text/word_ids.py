"""The word that each word piece of a text belongs to, as transformers' `word_ids` has it."""

from __future__ import annotations

import torch


def word_ids_of(offsets: torch.Tensor, special: torch.Tensor) -> torch.Tensor:
    """The number of each piece's word within its text, -1 for special pieces and padding: [B, T].

    offsets [B, T, 2]: first character and end of each piece; special [B, T]: 1 for special pieces.
    A word begins where characters lie between a piece and the one before, or after a special one,
    so punctuation belongs to the word that it touches (as transformers' whole word masking has it,
    DataCollatorForLanguageModeling with whole_word_mask).
    """
    is_special = special.bool()
    touches = torch.zeros_like(is_special)
    touches[:, 1:] = (offsets[:, 1:, 0] == offsets[:, :-1, 1]) & ~is_special[:, :-1]
    begins = ~is_special & ~touches
    return (begins.cumsum(dim=1) - 1).masked_fill(is_special, -1)
