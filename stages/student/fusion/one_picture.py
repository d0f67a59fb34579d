"""The fusion's first layer for many texts on one picture.

The picture's cells enter it alike for every text, so that their queries, keys and values are
computed once. Letters: B texts, T word pieces, C cells, S = T + C, D hidden size.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.bert.modeling_bert import BertLayer


def run_first_layer(
    layer: BertLayer, text: torch.Tensor, cells: torch.Tensor, attended: torch.Tensor
) -> torch.Tensor:
    """text [B, T, D], cells [1, C, D], attended bool [B, 1, 1, S] -> [B, S, D]: the same as the
    layer on both side by side. Without dropout: for a network in evaluation mode."""
    attention = layer.attention.self
    num_texts = len(text)

    def joined(of_text: torch.Tensor, of_cells: torch.Tensor) -> torch.Tensor:
        return torch.cat([of_text, of_cells.expand(num_texts, -1, -1)], dim=1)

    def heads(linear: nn.Linear) -> torch.Tensor:
        both = joined(linear(text), linear(cells))
        return both.unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)

    context = F.scaled_dot_product_attention(
        heads(attention.query), heads(attention.key), heads(attention.value), attn_mask=attended
    )
    context = context.transpose(1, 2).flatten(2)
    return layer.feed_forward_chunk(layer.attention.output(context, joined(text, cells)))
