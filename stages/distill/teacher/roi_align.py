"""RoIAlign: a fixed grid of features out of each box of a feature map. Reached from `pooler.py`.

He et al., Mask R-CNN, 2017 (https://arxiv.org/abs/1703.06870), in the aligned form of
detectron2's ROIAlignV2: half a cell is taken off, because a cell's value sits at its middle.

Each output bin is the mean of S x S bilinear samples, each of four cells: a weighted sum of
4 * S * S rows of the flattened feature map. That is what `embedding_bag` computes, in one fused
kernel on every device, with a gradient for the map; boxes get none (proposals are constants, as
in detectron2).

Letters: B pictures, C channels, H x W cells of the map, R boxes, P bins a side, S samples a bin
and side.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from stages.distill.teacher.torchvision_ops import find_torchvision_ops


def roi_align(feature: Tensor, boxes: Tensor, picture_index: Tensor, *, stride: int,
              num_bins: int, sampling_ratio: int) -> Tensor:
    """Features [R, C, P, P] of boxes [R, 4] (pixels of the network's input).

    feature [B, C, H, W], a cell `stride` pixels; picture_index [R] (int64) says which picture of
    the batch a box lies on. A sample more than one cell outside the map counts as 0, one nearer
    takes the value at the edge. A box without area samples a line or a point.
    """
    ops = find_torchvision_ops()
    if ops is not None:
        with_index = torch.cat([picture_index[:, None].to(boxes.dtype), boxes], 1)
        return ops.roi_align(feature, with_index, (num_bins, num_bins), 1.0 / stride,
                             sampling_ratio, aligned=True)
    num_pictures, num_channels, height, width = feature.shape
    if len(boxes) == 0:
        return feature.new_zeros(0, num_channels, num_bins, num_bins) + 0 * feature.sum()
    boxes = boxes.detach().to(feature.dtype) / stride - 0.5
    cells_x, weights_x = _bilinear(boxes[:, 0], boxes[:, 2], width, num_bins, sampling_ratio)
    cells_y, weights_y = _bilinear(boxes[:, 1], boxes[:, 3], height, num_bins, sampling_ratio)
    # [R, P, 1, 2S, 1] and [R, 1, P, 1, 2S] give every pair of a row's and a column's samples.
    rows = (picture_index[:, None, None] * height + cells_y)[:, :, None, :, None]
    cells = rows * width + cells_x[:, None, :, None, :]
    weights = weights_y[:, :, None, :, None] * weights_x[:, None, :, None, :]
    num_samples = 4 * sampling_ratio * sampling_ratio
    pooled = functional.embedding_bag(
        cells.reshape(-1, num_samples), feature.permute(0, 2, 3, 1).reshape(-1, num_channels),
        per_sample_weights=weights.reshape(-1, num_samples), mode="sum")
    return pooled.view(len(boxes), num_bins, num_bins, num_channels).permute(0, 3, 1, 2)


def _bilinear(start: Tensor, end: Tensor, num_cells: int, num_bins: int, sampling_ratio: int
              ) -> tuple[Tensor, Tensor]:
    """Along one axis: cells and weights [R, P, 2S] that each bin of [start, end] reads.

    start, end [R] in cells. Weights include the mean over the S samples, so those of a bin
    inside the map sum to 1.
    """
    bins = torch.arange(num_bins, device=start.device, dtype=start.dtype)
    samples = torch.arange(sampling_ratio, device=start.device, dtype=start.dtype) + 0.5
    bin_size = ((end - start) / num_bins)[:, None, None]
    # [R, P, S]; multiplied out in the order of detectron2's kernel, so that rounding agrees.
    at = start[:, None, None] + bins[:, None] * bin_size + samples * bin_size / sampling_ratio
    is_near = (at >= -1) & (at <= num_cells)
    at = at.clamp(0, num_cells - 1)
    low = at.floor().clamp(max=max(num_cells - 2, 0))
    high_weight = at - low
    low_cell = low.long()
    high_cell = (low_cell + 1).clamp(max=num_cells - 1)
    cells = torch.stack([low_cell, high_cell], -1)
    weights = torch.stack([1 - high_weight, high_weight], -1) * is_near[..., None]
    shape = (len(start), num_bins, 2 * sampling_ratio)
    return cells.view(shape), (weights / sampling_ratio).view(shape)
