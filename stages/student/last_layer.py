"""The fusion's last layer, computed only for the outputs that are used.

Every layer but the last needs all of its outputs, as the next one attends to them; of the last
one's the heads use [CLS] and what was masked, a few in a hundred. Keys and values are computed for
all tokens, queries and what follows for those with a used output.
Letters: B pairs, S = T + C tokens of a pair, M tokens with a used output, D hidden size, A heads.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F
from transformers.models.bert.modeling_bert import BertLayer


def run_last_layer(
    layer: BertLayer, hidden: torch.Tensor, attended: torch.Tensor, output_mask: torch.Tensor
) -> torch.Tensor:
    """hidden [B, S, D], attended bool [B, 1, 1, S], output_mask bool [B, S] -> [B, S, D].

    The same as `layer(hidden, attended)` where `output_mask` is true, zeros elsewhere; so are its
    gradients.
    """
    pair, place = output_mask.nonzero(as_tuple=True)
    tokens = hidden[pair, place]
    context = _attend(layer, tokens, pair, hidden, attended, output_mask)
    output = layer.feed_forward_chunk(layer.attention.output(context, tokens))
    return torch.zeros_like(hidden).index_put((pair, place), output.to(hidden.dtype))


def _attend(
    layer: BertLayer,
    tokens: torch.Tensor,
    pair: torch.Tensor,
    hidden: torch.Tensor,
    attended: torch.Tensor,
    output_mask: torch.Tensor,
) -> torch.Tensor:
    """What the tokens [M, D] of the pairs [M] see in hidden [B, S, D]: [M, D]."""
    attention = layer.attention.self

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)

    # Attention wants as many queries of each pair: those of a pair are brought to its front.
    rank = (output_mask.cumsum(dim=1) - 1)[output_mask]
    query = attention.query(tokens)
    queries = query.new_zeros(len(hidden), int(output_mask.sum(dim=1).max()), query.shape[-1])
    context = F.scaled_dot_product_attention(
        heads(queries.index_put((pair, rank), query)),
        heads(attention.key(hidden)),
        heads(attention.value(hidden)),
        attn_mask=attended,
        dropout_p=attention.dropout.p if attention.training else 0.0,
    )
    return context.transpose(1, 2).flatten(2)[pair, rank]
