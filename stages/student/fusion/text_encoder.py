"""Encodes texts with the fusion's Transformer alone, without a picture.

Letters: B texts, T word pieces, D hidden size, L layers whose outputs are taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder

TEXTS_TOGETHER = 32
"""Texts that a CPU encodes at a time, padded to the longest of them."""


def encode_texts(
    embeddings: BertEmbeddings,
    fusion: BertEncoder,
    tokens: torch.Tensor,
    is_token: torch.Tensor,
    layers: Sequence[int],
) -> torch.Tensor:
    """tokens [B, T], which of them are no padding bool [B, T] -> the outputs of `layers` (0: the
    embeddings, -1: the last layer) side by side, [B, T, L x D], zeros at padding.

    On a CPU texts of similar length are computed together, so that there is little padding.
    """
    if tokens.is_cuda or len(tokens) <= TEXTS_TOGETHER:
        return encode_together(embeddings, fusion, tokens, is_token, layers) * is_token[..., None]
    order = is_token.sum(dim=1).argsort(stable=True)
    encoded = []
    for rows in order.split(TEXTS_TOGETHER):
        longest = max(1, int(is_token[rows].sum(dim=1).max()))
        part = encode_together(
            embeddings, fusion, tokens[rows, :longest], is_token[rows, :longest], layers
        )
        encoded.append(F.pad(part, (0, 0, 0, tokens.shape[1] - longest)))
    return torch.cat(encoded)[order.argsort()] * is_token[..., None]


def encode_together(
    embeddings: BertEmbeddings,
    fusion: BertEncoder,
    tokens: torch.Tensor,
    is_token: torch.Tensor,
    layers: Sequence[int],
) -> torch.Tensor:
    """`encode_texts` in one pass, with whatever the Transformer gives at padding."""
    embedded, attended = embeddings(tokens), is_token[:, None, None, :]
    if list(layers) == [-1]:
        return fusion(embedded, attention_mask=attended).last_hidden_state
    outputs = [embedded]
    for layer in fusion.layer:
        outputs.append(layer(outputs[-1], attended))
    return torch.cat([outputs[number] for number in layers], dim=-1)
