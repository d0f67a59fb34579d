"""SOHO's neck (arXiv 2104.03135, section 3.2 and its released code): cells, their codes, a gate.

The convolution before it is in `stages.student.vision.grid`; mask vector, positions and LayerNorm
come after it, once a pair, in `stages.student.network`.
Letters: N pictures, R rows and S columns of the grid, C = R x S cells, K codes, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from stages.student.vision.batch_norm import make_batch_norm
from stages.student.vision.neck_config import SohoNeckConfig
from stages.student.vision.visual_dictionary import Dictionary


class SohoNeck(nn.Module):
    """BatchNorm, dictionary and gate: runs once a picture, however many texts look at it.

    x = BN(conv), e = W code(x) + b, (a, b) = softmax(BN(G [e, x])), cell = a e + b x.
    """

    def __init__(self, config: SohoNeckConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.norm = make_batch_norm(config.batch_norm, hidden_size)
        self.dictionary = Dictionary(config.dictionary, hidden_size)
        self.code_line = nn.Linear(hidden_size, hidden_size)
        self.gate = nn.Conv2d(2 * hidden_size, 2, 1, bias=False)
        self.gate_norm = make_batch_norm(config.batch_norm, 2)

    def forward(
        self,
        features: torch.Tensor,
        inside: torch.Tensor,
        num_texts: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """features [N, R, S, D] and inside bool [N, C] -> cells [N, C, D], index of their codes
        [N, C] (-1 while the dictionary has not started).

        num_texts [N], how many texts look at each picture, where the dictionary shall learn (0 for
        a picture that counts nothing); None where it shall not.
        """
        copies = num_texts if self.config.count_captions else None
        x = _normalise(self.norm, features.permute(0, 3, 1, 2), copies)
        cells = x.flatten(2).transpose(1, 2)
        weights = None
        if num_texts is not None:
            weights = self._weights(inside, num_texts).flatten()
        index, value = self.dictionary(cells.flatten(0, 1), weights)
        code = self.code_line(value.to(cells.dtype)).view_as(cells)
        code_map = code.transpose(1, 2).view_as(x)
        logits = self.gate(torch.cat([code_map, x], dim=1))
        gates = _normalise(self.gate_norm, logits, copies).softmax(dim=1).flatten(2)
        mixed = gates[:, 0, :, None] * code + gates[:, 1, :, None] * cells
        return mixed, index.view(inside.shape)

    def _weights(self, inside: torch.Tensor, num_texts: torch.Tensor) -> torch.Tensor:
        """How often each cell counts for the dictionary: float [N, C]."""
        seen = torch.ones_like(inside) if self.config.dictionary.count_padding else inside
        times = num_texts if self.config.count_captions else num_texts.clamp(max=1)
        return seen.float() * times.float()[:, None]


def _normalise(
    norm: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, copies: torch.Tensor | None
) -> torch.Tensor:
    """`norm`, a BatchNorm, of x [N, D, R, S] as if each picture were there `copies` [N] times.

    The released code repeats each picture for each caption (4, all alike). Mean and variance do not
    change by that; the running variance has n / (n - 1) with n the number of copied cells.
    """
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    if not norm.training or copies is None:
        return norm(x)
    assert norm.running_var is not None and norm.momentum is not None
    kept = (1 - norm.momentum) * norm.running_var
    normalised = norm(x)
    n = x.numel() / x.shape[1]
    if isinstance(norm, nn.SyncBatchNorm) and torch.distributed.is_initialized():
        n *= torch.distributed.get_world_size()
    many = n * copies.float().mean().clamp(min=1)
    right = (n - 1) / n * many / (many - 1)
    # A new tensor: autograd holds the old one, and would not have it changed.
    norm.running_var = kept + (norm.running_var - kept) * right
    return normalised


def cells_inside_released(
    sizes_px: torch.Tensor, rows: int, columns: int, padded_height_px: int
) -> torch.Tensor:
    """Which cells the released code attends: [N, 2] height, width -> bool [N, C].

    Its mask is a square of the padded height, sampled rows x columns times; so the columns of an
    upright picture are cut short, and padding beside a broad one counts as picture.
    """
    down, across = (
        torch.arange(num, device=sizes_px.device) * padded_height_px // num
        for num in (rows, columns)
    )
    inside_rows, inside_columns = down < sizes_px[:, :1], across < sizes_px[:, 1:]
    return (inside_rows[:, :, None] & inside_columns[:, None, :]).flatten(1)


def padding_aware_positions(inside: torch.Tensor, hidden_size: int) -> torch.Tensor:
    """SOHO's 2-D sine positions (DETR's, arXiv 2005.12872, with normalisation): inside bool
    [N, R, S] -> float [N, C, D].

    The coordinate runs from just above 0 to 2 pi over the cells inside, a row or column at a time,
    and is 0 where none is inside. First half of the channels: the row; second: the column; sine at
    even places, cosine at odd ones.
    """
    half = hidden_size // 2
    place = torch.arange(half, device=inside.device)
    rate = 10_000 ** (-2 * (place // 2) / half)
    parts = []
    for axis in (1, 2):
        counted = inside.float().cumsum(dim=axis)
        last = counted.narrow(axis, counted.shape[axis] - 1, 1)
        angles = (counted / (last + 1e-6) * 2 * math.pi)[..., None] * rate
        parts.append(torch.where(place % 2 == 0, angles.sin(), angles.cos()))
    return torch.cat(parts, dim=-1).flatten(1, 2)
