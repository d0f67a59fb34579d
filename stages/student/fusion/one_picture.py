"""Computes the fusion's [CLS] output for many texts on one picture.

A layer's queries, keys and values are of a token alone. Those of the first layer are computed once
for a picture, and once for a text; the last layer is computed for [CLS] alone. For a network in
evaluation mode: without dropout. Letters: B texts, T word pieces, C cells, S = T + C, N either of
T and C, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers.models.bert.modeling_bert import BertLayer

from stages.student.fusion.last_layer import run_last_layer_of_first


@dataclass(frozen=True)
class FirstInputs:
    """What texts [B, N] or one picture [1, N] give to the first layer: `hidden` [., N, D], its
    queries, keys and values side by side `projected` [., N, 3 D], and which are there, not padding:
    `real` bool [., N]."""

    hidden: torch.Tensor
    projected: torch.Tensor
    real: torch.Tensor

    @classmethod
    def of(cls, layer: BertLayer, hidden: torch.Tensor, real: torch.Tensor) -> FirstInputs:
        """Of what enters the first layer, `layer`."""
        return cls(hidden, _projected(layer, hidden), real)

    @property
    def num_bytes(self) -> int:
        """Of memory."""
        return self.hidden.nbytes + self.projected.nbytes + self.real.nbytes


def first_outputs(
    layers: Sequence[BertLayer], texts: FirstInputs, picture: FirstInputs
) -> torch.Tensor:
    """The last layer's output at each text's first piece, with the picture: [B, D]. The same as
    all layers on texts and cells side by side; at least two layers."""
    num_texts = len(texts.hidden)

    def joined(of_texts: torch.Tensor, of_picture: torch.Tensor) -> torch.Tensor:
        whole = of_picture.expand(num_texts, *of_picture.shape[1:])
        return torch.cat([of_texts, whole], dim=1)

    attended = joined(texts.real, picture.real)[:, None, None, :]
    first, *others, last = layers
    hidden = joined(texts.hidden, picture.hidden)
    hidden = _through(first, joined(texts.projected, picture.projected), hidden, attended)
    for layer in others:
        hidden = _through(layer, _projected(layer, hidden), hidden, attended)
    return run_last_layer_of_first(last, hidden, attended)


def _projected(layer: BertLayer, hidden: torch.Tensor) -> torch.Tensor:
    """Queries, keys and values by one product: [., N, 3 D]."""
    attention = layer.attention.self
    parts = (attention.query, attention.key, attention.value)
    weight = torch.cat([part.weight for part in parts])
    return F.linear(hidden, weight, torch.cat([part.bias for part in parts]))


def _through(
    layer: BertLayer, projected: torch.Tensor, hidden: torch.Tensor, attended: torch.Tensor
) -> torch.Tensor:
    """The layer on hidden [B, S, D] of which `projected` [B, S, 3 D] are queries, keys, values."""
    heads = (3, layer.attention.self.num_attention_heads, -1)
    query, key, value = projected.unflatten(-1, heads).permute(2, 0, 3, 1, 4)
    context = F.scaled_dot_product_attention(query, key, value, attn_mask=attended)
    context = context.transpose(1, 2).flatten(2)
    return layer.feed_forward_chunk(layer.attention.output(context, hidden))
