"""Records the fusion's attention maps and hidden states.

The student runs as it always does, on its fast attention, which keeps no weights; hooks look on
and work the weights out again.
Letters: B pairs, L layers, A heads, T word pieces, C cells, S = T + C tokens, D hidden size.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stages.student.network import Student
from stages.student.outputs import Cells, Hidden


@dataclass(frozen=True, kw_only=True)
class AttentionTrace:
    """A forward pass and what led to it. Tokens are in the order of the fusion: text, then cells.

    `attention` [B, L, A, S, S], float32: row i is what token i attends to, and sums to 1; what is
    padding is attended to by none. `states` [B, L + 1, S, D]: before the first layer, and after
    each.
    """

    hidden: Hidden
    attention: torch.Tensor
    states: torch.Tensor


@torch.no_grad()
def trace_attention(
    student: Student, cells: Cells, *, picture: torch.Tensor, tokens: torch.Tensor
) -> AttentionTrace:
    """`student.fuse`, watched: `picture` [B] and `tokens` [B, T] as there."""
    attention: list[torch.Tensor] = []
    states: list[torch.Tensor] = []

    def attended(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        attention.append(_weights(module, args[0] if args else kwargs["hidden_states"], mask))

    with ExitStack() as stack:
        for number, layer in enumerate(student.fusion.layer):
            own = layer.attention.self.register_forward_hook(attended, with_kwargs=True)
            stack.callback(own.remove)
            if number == 0:
                before = layer.register_forward_pre_hook(lambda _, args: states.append(args[0]))
                stack.callback(before.remove)
            after = layer.register_forward_hook(lambda _, args, output: states.append(output))
            stack.callback(after.remove)
        hidden = student.fuse(cells, picture=picture, input_ids=tokens)
    return AttentionTrace(
        hidden=hidden, attention=torch.stack(attention, dim=1), states=torch.stack(states, dim=1)
    )


def _weights(module: Any, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Softmax of scaled dot products of a BertSelfAttention: hidden [B, S, D] -> [B, A, S, S].

    `mask` [B, 1, 1 or S, S] as the attention got it: bool, true where one may look, or a number to
    add.
    """
    query, key = (
        part(hidden).unflatten(-1, (-1, module.attention_head_size)).transpose(1, 2)
        for part in (module.query, module.key)
    )
    scores = (query @ key.transpose(2, 3)).float() * module.scaling
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1)


def rollout(attention: torch.Tensor) -> torch.Tensor:
    """Attention through all layers: [L, A, S, S] -> [S, S], rows sum to 1.

    Abnar and Zuidema (arXiv 2005.00928): heads averaged, half of a token's way goes through the
    residual connection, layers multiplied.
    """
    mean = attention.mean(dim=1)
    through = torch.eye(mean.shape[-1], device=mean.device)
    for layer in mean:
        through = (layer @ through + through) / 2
    return through
