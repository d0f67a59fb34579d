"""Extends a student's vocabulary or token types."""

from __future__ import annotations

import torch
from torch import nn
from transformers import initialization

from boxless.errors import BoxlessError
from stages.student.heads import MlmHead
from stages.student.network import Student


@torch.no_grad()
def extend(student: Student, *, vocab_size: int, num_token_types: int) -> None:
    """Give a student new rows of words and of token types; what it has stays, bit for bit.

    A new word is random, as in a new network; a new token type is row 0's (KD-VLP's
    init_type_embedding). Raises ValueError where that would take any away.
    """
    embeddings = student.embeddings
    words, types = embeddings.word_embeddings, embeddings.token_type_embeddings
    for name, have, want in (
        ("vocab_size", words.num_embeddings, vocab_size),
        ("num_token_types", types.num_embeddings, num_token_types),
    ):
        if want < have:
            raise BoxlessError(f"{name}: got {want}, expected at least the student's own {have}")
    new_words = nn.Embedding(vocab_size, words.embedding_dim, padding_idx=words.padding_idx)
    initialization.normal_(new_words.weight, mean=0.0, std=student.config.initializer_range)
    embeddings.word_embeddings = _with_rows_of(words, new_words)
    new_types = nn.Embedding(num_token_types, types.embedding_dim)
    new_types.weight.copy_(types.weight[:1].expand_as(new_types.weight))
    embeddings.token_type_embeddings = _with_rows_of(types, new_types)
    if isinstance(student.mlm_head, MlmHead):
        bias = student.mlm_head.bias
        student.mlm_head.bias = nn.Parameter(
            torch.cat([bias, bias.new_zeros(vocab_size - len(bias))])
        )
    student.config.bert.update(vocab_size=vocab_size, type_vocab_size=num_token_types)


def _with_rows_of(old: nn.Embedding, new: nn.Embedding) -> nn.Embedding:
    """`new` on the device and in the precision of `old`, its first rows those of `old`."""
    new = new.to(old.weight)
    new.weight[: len(old.weight)] = old.weight
    return new
