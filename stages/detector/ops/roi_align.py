"""RoIAlign: a fixed grid of features for each box, by bilinear interpolation.

He et al., Mask R-CNN, 2017 (https://arxiv.org/abs/1703.06870), in the aligned form of
detectron2's ROIAlignV2: half a cell is taken off, because a cell's value sits at its middle.

Each output bin is the mean of S x S bilinear samples, each of four cells: a weighted sum of rows
of the flattened feature map. Samples lie close, so most read the same cells; along an axis their
weights are added up cell by cell, and what is left are the few cells that a bin reads, the next
to the last. `embedding_bag` then sums all bins in one fused kernel on every device, with a
gradient for the map; boxes get none (proposals are constants, as in detectron2). On CPU this is
several times faster than torchvision's kernel, which visits every sample (measured by
benchmarks/detector/teacher_parts.py), so there is one way, with or without torchvision.

Letters: B pictures, C channels, H x W cells of the map, R boxes, P bins a side, Q bins a side that
are kept, S samples a bin and side, K cells that a bin reads along an axis, N reads of all bins.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class _Runs(NamedTuple):
    """What the bins read along one axis: for each a run of cells with weights."""

    first: Tensor  # [R, Q] int64, cell at which a bin's run begins
    weights: Tensor  # [R, Q, K]; those of a bin inside the map sum to 1, those beyond counts are 0
    counts: Tensor  # [R] int64, cells in each run of a box, at most K; the last one is in the map


def roi_align(
    feature: Tensor,
    boxes: Tensor,
    picture_index: Tensor,
    *,
    stride: int,
    num_bins: int,
    sampling_ratio: int,
    bin_step: int = 1,
) -> Tensor:
    """Features [R, C, Q, Q] of boxes [R, 4] (pixels of the network's input), channels last.

    feature [B, C, H, W], a cell `stride` pixels; picture_index [R] (int64) says which picture of
    the batch a box lies on. `sampling_ratio` is S; 0 takes for each box and axis as many samples
    as a bin spans cells, rounded up, so none at all where a side is 0 or less: such a box gives 0.
    With S above 0 a box without area samples a line or a point. A sample more than one cell
    outside the map counts as 0, one nearer takes the value at the edge.

    `bin_step` keeps only every so many bins of the num_bins grid, from the first: what a 1x1
    convolution of that stride would read. Q = ceil(num_bins / bin_step). Memory beyond the output
    is about 50 bytes a read, which is little beside a bin's C channels.
    """
    num_channels, height, width = feature.shape[1:]
    num_kept = -(-num_bins // bin_step)
    if len(boxes) == 0:
        return feature.new_zeros(0, num_channels, num_kept, num_kept) + 0 * feature.sum()
    bins = torch.arange(0, num_bins, bin_step, device=boxes.device, dtype=boxes.dtype)
    boxes = boxes.detach() / stride - 0.5
    rows = _find_runs(boxes[:, 1], boxes[:, 3], height, bins, num_bins, sampling_ratio)
    columns = _find_runs(boxes[:, 0], boxes[:, 2], width, bins, num_bins, sampling_ratio)
    cells, weights, starts = _join(rows, columns, picture_index * (height * width), width)
    pooled = functional.embedding_bag(
        cells,
        feature.permute(0, 2, 3, 1).reshape(-1, num_channels),
        starts,
        per_sample_weights=weights.to(feature.dtype),
        mode="sum",
    )
    return pooled.view(len(boxes), num_kept, num_kept, num_channels).permute(0, 3, 1, 2)


def _find_runs(
    start: Tensor, end: Tensor, num_cells: int, bins: Tensor, num_bins: int, sampling_ratio: int
) -> _Runs:
    """What each of `bins` [Q] (numbers of bins) of [start, end] ([R], in cells) reads."""
    bin_size = (end - start) / num_bins
    if sampling_ratio > 0:
        num_samples = torch.full_like(bin_size, sampling_ratio)
        most_samples = sampling_ratio
    else:
        num_samples = bin_size.ceil().clamp(min=0)
        most_samples = max(int(num_samples.max()), 1)
    samples = torch.arange(most_samples, device=start.device, dtype=start.dtype)
    is_used = (samples < num_samples[:, None])[:, None]
    # [R, Q, S]; multiplied out in the order of detectron2's kernel, so that rounding agrees.
    wide, divisor = bin_size[:, None, None], num_samples.clamp(min=1)[:, None, None]
    at = start[:, None, None] + bins[:, None] * wide + (samples + 0.5) * wide / divisor
    share = ((at >= -1) & (at <= num_cells) & is_used) / divisor
    at = at.clamp(0, num_cells - 1)
    low = at.floor().clamp(max=max(num_cells - 2, 0))
    high_weight = at - low
    low_cell = low.long()
    # Of a box without samples the first comes after the last, so that it reads nothing.
    first = low_cell.masked_fill(~is_used, num_cells).amin(2)
    last = low_cell.masked_fill(~is_used, -1).amax(2)
    counts = ((last - first).amax(1) + 2).clamp(0, num_cells)
    # A run is as long as the longest of its box, and is moved back where it would leave the map.
    first = torch.minimum(first, (num_cells - counts)[:, None])
    num_read = int(counts.max())
    weights = start.new_zeros(*first.shape, num_read)
    if num_read > 0:
        place = (low_cell - first[..., None]).clamp(0, num_read - 1)
        weights.scatter_add_(2, place, (1 - high_weight) * share)
        weights.scatter_add_(2, (place + 1).clamp(max=num_read - 1), high_weight * share)
    return _Runs(first, weights, counts)


def _join(
    rows: _Runs, columns: _Runs, picture_start: Tensor, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Cells [N] and weights [N] that all bins read, bin after bin, and where each bin's reads
    start [R * Q * Q]. picture_start [R]: cells before the first of a box's picture."""
    num_boxes, num_bins = rows.first.shape
    num_box_bins = num_bins * num_bins
    device = picture_start.device

    def spread(by_row: Tensor, by_column: Tensor) -> Tensor:
        """Sum [R * Q * Q] of a value [R, Q] of a bin's row and one of its column."""
        return (by_row[:, :, None] + by_column[:, None, :]).flatten()

    at_bin = torch.arange(num_boxes * num_bins, device=device).view(num_boxes, num_bins)
    nothing = torch.zeros_like(at_bin)
    corner = spread(picture_start[:, None] + rows.first * width, columns.first)
    row_weight = spread(at_bin * rows.weights.shape[2], nothing)
    column_weight = spread(nothing, at_bin * columns.weights.shape[2])
    counts = (rows.counts * columns.counts).repeat_interleave(num_box_bins)
    starts = counts.cumsum(0) - counts
    # From here on one entry a read. (On CPU, index_select takes a quarter of an index's time.)
    bin_of = torch.repeat_interleave(counts)
    read = torch.arange(len(bin_of), device=device) - starts.index_select(0, bin_of)
    run = columns.counts.repeat_interleave(num_box_bins).index_select(0, bin_of)
    row = torch.div(read, run, rounding_mode="floor")
    column = read - row * run
    row_weight = row_weight.index_select(0, bin_of) + row
    column_weight = column_weight.index_select(0, bin_of) + column
    weights = rows.weights.flatten().index_select(
        0, row_weight
    ) * columns.weights.flatten().index_select(0, column_weight)
    return corner.index_select(0, bin_of) + row * width + column, weights, starts
