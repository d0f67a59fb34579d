"""The fusion's last layer, run only where its output is read.

Every layer but the last needs all of its outputs, for the next one attends to them; of the last
one's, the heads read [CLS] and what was masked, a few in a hundred. Keys and values are made of
all tokens, queries and what follows of those that are read.
Letters: B pairs, S = T + C tokens of a pair, M tokens that are read, D hidden size, A heads.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F
from transformers.models.bert.modeling_bert import BertLayer


def run_where_read(
    layer: BertLayer, hidden: torch.Tensor, attended: torch.Tensor, read: torch.Tensor
) -> torch.Tensor:
    """hidden [B, S, D], attended bool [B, 1, 1, S], read bool [B, S] -> [B, S, D].

    The same as `layer(hidden, attended)` where `read`, zeros elsewhere; so are its gradients.
    """
    pair, place = read.nonzero(as_tuple=True)
    tokens = hidden[pair, place]
    context = _attend(layer, tokens, pair, hidden, attended, read)
    output = layer.feed_forward_chunk(layer.attention.output(context, tokens))
    return torch.zeros_like(hidden).index_put((pair, place), output.to(hidden.dtype))


def _attend(
    layer: BertLayer,
    tokens: torch.Tensor,
    pair: torch.Tensor,
    hidden: torch.Tensor,
    attended: torch.Tensor,
    read: torch.Tensor,
) -> torch.Tensor:
    """What the tokens [M, D] of the pairs [M] see in hidden [B, S, D]: [M, D]."""
    attention = layer.attention.self

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)

    # Attention wants as many queries of each pair: those of a pair are brought to its front.
    rank = (read.cumsum(dim=1) - 1)[read]
    query = attention.query(tokens)
    queries = query.new_zeros(len(hidden), int(read.sum(dim=1).max()), query.shape[-1])
    context = F.scaled_dot_product_attention(
        heads(queries.index_put((pair, rank), query)),
        heads(attention.key(hidden)),
        heads(attention.value(hidden)),
        attn_mask=attended,
        dropout_p=attention.dropout.p if attention.training else 0.0,
    )
    return context.transpose(1, 2).flatten(2)[pair, rank]
