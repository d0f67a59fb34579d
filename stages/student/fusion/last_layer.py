"""The fusion's last layer, computed only for the outputs that are used.

Every layer but the last needs all of its outputs, as the next one attends to them; of the last
one's the heads use [CLS] and what was masked, a few in a hundred. Keys and values are computed for
all tokens, queries and what follows for those with a used output.
Letters: B pairs, S = T + C tokens of a pair, M tokens with a used output, D hidden size, A heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers.models.bert.modeling_bert import BertLayer


@dataclass(frozen=True)
class OutputPlaces:
    """The M outputs of the fusion that are used: `index` int [3, M], the pair of each, its place
    among the pair's tokens, and its rank among those that are used of the pair; `most` of a
    pair."""

    index: torch.Tensor
    most: int

    @classmethod
    def of(cls, output_mask: torch.Tensor) -> OutputPlaces:
        """Those where `output_mask`, bool [B, S]. On a GPU it waits for what they are."""
        pair, place = output_mask.nonzero(as_tuple=True)
        rank = (output_mask.cumsum(dim=1) - 1)[pair, place]
        most = int(output_mask.sum(dim=1).max()) if len(output_mask) else 0
        return cls(torch.stack([pair, place, rank]), most)

    @classmethod
    def of_first(cls, num_pairs: int, device: torch.device) -> OutputPlaces:
        """The first output of each pair, [CLS]."""
        pair = torch.arange(num_pairs, device=device)
        return cls(torch.stack([pair, torch.zeros_like(pair), torch.zeros_like(pair)]), 1)


def run_last_layer(
    layer: BertLayer, hidden: torch.Tensor, attended: torch.Tensor, places: OutputPlaces
) -> torch.Tensor:
    """hidden [B, S, D], attended bool [B, 1, 1, S] -> [B, S, D].

    The same as `layer(hidden, attended)` at the places, zeros elsewhere; so are its
    gradients.
    """
    pair, place, _ = places.index
    tokens = hidden[pair, place]
    context = _attend(layer, tokens, hidden, attended, places)
    output = layer.feed_forward_chunk(layer.attention.output(context, tokens))
    return torch.zeros_like(hidden).index_put((pair, place), output.to(hidden.dtype))


def run_last_layer_of_first(
    layer: BertLayer, hidden: torch.Tensor, attended: torch.Tensor
) -> torch.Tensor:
    """hidden [B, S, D], attended bool [B, 1, 1, S] -> [B, D]: the same as `layer(hidden, attended)`
    at the first token. Without dropout: for a network in evaluation mode.

    One token has one query a head, q. With keys K h + k its scores are q K h, and q k, which is the
    same for all h and goes out in the softmax; and what it sees is V times the mean of h. So
    neither keys nor values of all tokens are computed.
    """
    attention = layer.attention.self
    first = hidden[:, 0]
    by_head = (attention.num_attention_heads, -1)
    query = attention.query(first).unflatten(-1, by_head).transpose(0, 1)  # [A, B, D / A]
    query = query @ attention.key.weight.unflatten(0, by_head)  # [A, B, D]
    every = hidden[:, None]
    means = F.scaled_dot_product_attention(
        query.transpose(0, 1)[:, None], every, every, attn_mask=attended, scale=attention.scaling
    )
    value = attention.value.weight.unflatten(0, by_head).transpose(1, 2)  # [A, D, D / A]
    context = (means[:, 0].transpose(0, 1) @ value).transpose(0, 1).flatten(1)
    context = context + attention.value.bias
    return layer.feed_forward_chunk(layer.attention.output(context, first))


def _attend(
    layer: BertLayer,
    tokens: torch.Tensor,
    hidden: torch.Tensor,
    attended: torch.Tensor,
    places: OutputPlaces,
) -> torch.Tensor:
    """What the tokens [M, D] at the places see in hidden [B, S, D]: [M, D]."""
    attention = layer.attention.self
    pair, _, rank = places.index

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)

    # Attention wants as many queries of each pair: those of a pair are brought to its front.
    query = attention.query(tokens)
    queries = query.new_zeros(len(hidden), places.most, query.shape[-1])
    context = F.scaled_dot_product_attention(
        heads(queries.index_put((pair, rank), query)),
        heads(attention.key(hidden)),
        heads(attention.value(hidden)),
        attn_mask=attended,
        dropout_p=attention.dropout.p if attention.training else 0.0,
    )
    return context.transpose(1, 2).flatten(2)[pair, rank]
