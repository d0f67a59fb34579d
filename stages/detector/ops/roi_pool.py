"""RoIPool: the largest value in each bin of a box, without interpolation.

Fast R-CNN, Girshick, 2015 (https://arxiv.org/abs/1504.08083), section 2.1, as its Caffe layer,
py-faster-rcnn and torchvision.ops.roi_pool define it: the edges of a box are rounded to whole
cells, the last cell counts, and neighbouring bins may share a cell.

The maximum over any rectangle is that of four smaller ones whose sides are powers of two, one in
each corner, which may overlap. The maxima over all such windows of the map are few and cheap, and
a bin of any size then is four rows of them.

Letters: B pictures, C channels, H x W cells of the map, R boxes, Q bins a side that are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_BINS = 2048  # bounds what is gathered at once, so that it stays in the caches


@torch.no_grad()
def roi_pool(
    feature: Tensor,
    boxes: Tensor,
    picture_index: Tensor,
    *,
    stride: int,
    num_bins: int,
    bin_step: int = 1,
) -> Tensor:
    """Features [R, C, Q, Q] of boxes [R, 4] (pixels of the network's input), channels last.

    feature [B, C, H, W], a cell `stride` pixels; picture_index [R] (int64) says which picture of
    the batch a box lies on. A bin without cells, outside the map, is 0. `bin_step` keeps only
    every so many bins, from the first: Q = ceil(num_bins / bin_step). There is no gradient, as
    nothing here is trained through it.
    """
    num_pictures, num_channels, height, width = feature.shape
    bins = torch.arange(0, num_bins, bin_step, device=boxes.device, dtype=boxes.dtype)
    edges = _round(boxes.detach() / stride)
    top, bottom = _find_bins(edges[:, 1], edges[:, 3], height, bins, num_bins)
    left, right = _find_bins(edges[:, 0], edges[:, 2], width, bins, num_bins)
    if len(boxes) == 0:
        return feature.new_zeros(0, num_channels, len(bins), len(bins))
    height_log, width_log = _log2(bottom - top), _log2(right - left)
    num_logs = int(width_log.max()) + 1
    windows = _largest_in_windows(feature, int(height_log.max()) + 1, num_logs)
    kind = height_log[:, :, None] * num_logs + width_log[:, None, :]
    map_start = (kind * num_pictures + picture_index[:, None, None]) * (height * width)

    def rows(y: Tensor, x: Tensor) -> Tensor:
        """Rows [R * Q * Q] of `windows` that have their first cell at y, x ([R, Q])."""
        return (map_start + (y * width)[:, :, None] + x[:, None, :]).flatten()

    is_empty = (bottom <= top)[:, :, None] | (right <= left)[:, None, :]
    # The windows that end at a bin's last row or column; of an empty bin, anything in the map.
    top, left = top.clamp(max=height - 1), left.clamp(max=width - 1)
    low = torch.maximum(bottom - 2**height_log, top)
    far = torch.maximum(right - 2**width_log, left)
    corners = torch.stack([rows(top, left), rows(top, far), rows(low, left), rows(low, far)], 1)
    pooled = feature.new_empty(len(corners), num_channels)
    for bins_pooled, chunk in zip(pooled.split(CHUNK_BINS), corners.split(CHUNK_BINS)):
        first, second, third, fourth = (windows.index_select(0, corner) for corner in chunk.T)
        upper, lower = torch.maximum(first, second), torch.maximum(third, fourth)
        torch.maximum(upper, lower, out=bins_pooled)
    pooled.index_fill_(0, torch.nonzero(is_empty.flatten()).flatten(), 0)
    return pooled.view(len(boxes), len(bins), len(bins), num_channels).permute(0, 3, 1, 2)


def _round(values: Tensor) -> Tensor:
    """C's round(): halves go away from 0, where torch.round takes the even neighbour."""
    whole = values.trunc()
    return whole + values.sign() * ((values - whole).abs() >= 0.5)


def _find_bins(
    start: Tensor, end: Tensor, num_cells: int, bins: Tensor, num_bins: int
) -> tuple[Tensor, Tensor]:
    """First cell and the cell after the last [R, Q] (int64) of bins of [start, end] ([R])."""
    bin_size = (end - start + 1).clamp(min=1)[:, None] / num_bins
    first = (bins * bin_size).floor() + start[:, None]
    beyond = ((bins + 1) * bin_size).ceil() + start[:, None]
    return first.clamp(0, num_cells).long(), beyond.clamp(0, num_cells).long()


def _log2(counts: Tensor) -> Tensor:
    """Logarithm, rounded down, of whole numbers [...] (int64); 0 for those below 1."""
    return torch.frexp(counts.clamp(min=1).double()).exponent.long() - 1


def _largest_in_windows(feature: Tensor, num_height_logs: int, num_width_logs: int) -> Tensor:
    """Maxima [E * F * B * H * W, C] over windows of 2 ** e by 2 ** f cells, e below
    E = num_height_logs, f below F = num_width_logs, at each cell, its first. A window that leaves
    the map holds something or other."""
    tall = [feature.permute(0, 2, 3, 1)]
    for log in range(num_height_logs - 1):
        tall.append(_pair(tall[-1], 1, 2**log))
    windows = []
    for window in tall:
        windows.append(window)
        for log in range(num_width_logs - 1):
            windows.append(_pair(windows[-1], 2, 2**log))
    return torch.stack(windows).flatten(0, -2)


def _pair(window: Tensor, dim: int, step: int) -> Tensor:
    """The larger of each entry and the one `step` further along `dim`; the last have no other."""
    size = window.shape[dim]
    both = torch.maximum(window.narrow(dim, 0, size - step), window.narrow(dim, step, size - step))
    return torch.cat([both, window.narrow(dim, size - step, step)], dim)
