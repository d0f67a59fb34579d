"""ResNet's last stage as the box head of C4 models.

It is most of such a model's work (0.73 billion multiplications a proposal, four times that
dilated), so its first block is done a cheaper way where that is exact. It begins with two 1x1
convolutions (conv1 and the shortcut), which are linear but for their bias, and RoIAlign takes
weighted sums of cells, so the two may change places: the convolutions, without bias, run once over
the map, RoIAlign takes only the bins that their stride reads, and the bias is added to these. A
sample outside the map counts as 0 either way, as a convolution without bias maps 0 to 0. It pays
when the bins of all boxes are more than the map's cells, as with hundreds of overlapping
proposals. A maximum does not change places with a sum: RoIPool always goes the plain way.

Letters: B pictures, C channels of res4, H x W its cells, R boxes of the whole batch, P bins a side
after the stride, D feature size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.detector.model.resnet import RES5, Bottleneck, build_stage
from stages.detector.net_config import BoxConfig, ResNetConfig
from stages.detector.ops.pooler import Level, picture_of_boxes
from stages.detector.ops.roi_align import roi_align
from stages.detector.ops.roi_pool import roi_pool

# Boxes a block. They bound memory: 128 take 50 MB a tensor of 2048 channels and 7 x 7 bins in
# single precision. On GPUs each block costs starts of kernels and waits for sizes.
BLOCK_BOXES_CPU = 128
BLOCK_BOXES = 2048


class Maps(NamedTuple):
    """The 1x1 convolutions of the first block over the whole map, without bias."""

    hidden: Tensor  # [B, C', H, W], of conv1
    shortcut: Tensor  # [B, D, H, W]


class Res5BoxHead(nn.Module):
    """res5 on the bins of each box, then the mean over them."""

    def __init__(self, backbone: ResNetConfig, config: BoxConfig) -> None:
        super().__init__()
        self.config = config
        self.res5 = build_stage(backbone, RES5)

    def forward(self, levels: list[Level], boxes: list[Tensor]) -> Tensor:
        """Features [R, D] of boxes, one [R_i, 4] a picture in pixels of the network's input."""
        (level,) = levels
        all_boxes, picture_index = torch.cat(boxes), picture_of_boxes(boxes)
        maps = self._maps(level.feature, len(all_boxes))
        num_a_block = BLOCK_BOXES_CPU if all_boxes.device.type == "cpu" else BLOCK_BOXES
        if maps is None:
            bins = self._pool(level, all_boxes, picture_index)
            blocks = (self.res5[0](some) for some in bins.split(num_a_block))
        else:
            blocks = (
                self._first_from_maps(maps, level.stride, some, index)
                for some, index in zip(
                    all_boxes.split(num_a_block), picture_index.split(num_a_block)
                )
            )
        return torch.cat([self.res5[1:](block).mean((2, 3)) for block in blocks])

    def _maps(self, feature: Tensor, num_boxes: int) -> Maps | None:
        """The maps of a feature [B, C, H, W]; None where the plain way is exact or cheaper."""
        first = self.res5[0]
        if self.config.pooling != "align" or not isinstance(first, Bottleneck):
            return None
        if first.shortcut is None or type(first.conv1) is not nn.Conv2d:  # a normalisation is apart
            return None
        layers = (first.conv1, first.shortcut)
        num_cells = feature.shape[0] * feature.shape[2] * feature.shape[3]
        on_map = num_cells * sum(layer.weight.numel() for layer in layers)
        on_bins = num_boxes * sum(
            layer.weight.numel() * (-(-self.config.num_bins // layer.stride[0])) ** 2
            for layer in layers
        )
        if on_bins <= on_map:
            return None
        return Maps(*(functional.conv2d(feature, layer.weight) for layer in layers))

    def _pool(self, level: Level, boxes: Tensor, picture_index: Tensor) -> Tensor:
        """The bins of each box on the map itself [R, C, num_bins, num_bins]."""
        if self.config.pooling == "pool":
            return roi_pool(
                level.feature,
                boxes,
                picture_index,
                stride=level.stride,
                num_bins=self.config.num_bins,
            )
        return roi_align(
            level.feature,
            boxes,
            picture_index,
            stride=level.stride,
            num_bins=self.config.num_bins,
            sampling_ratio=self.config.sampling_ratio,
        )

    def _first_from_maps(
        self, maps: Maps, stride: int, boxes: Tensor, picture_index: Tensor
    ) -> Tensor:
        """The first block's result [R, D, P, P] from `maps`, whose cells span `stride` pixels."""
        first = self._first_block()
        assert first.shortcut is not None
        assert first.conv1.bias is not None and first.shortcut.bias is not None
        steps = (first.conv1.stride[0], first.shortcut.stride[0])

        def take(feature: Tensor, bin_step: int) -> Tensor:
            return roi_align(
                feature,
                boxes,
                picture_index,
                stride=stride,
                num_bins=self.config.num_bins,
                sampling_ratio=self.config.sampling_ratio,
                bin_step=bin_step,
            )

        if steps[0] == steps[1]:  # both read the same cells: which ones is worked out once
            widths = [feature.shape[1] for feature in maps]
            hidden, shortcut = take(torch.cat(maps, 1), steps[0]).split(widths, 1)
        else:
            hidden, shortcut = (take(*pair) for pair in zip(maps, steps))
        return first.finish(
            hidden + first.conv1.bias[:, None, None], shortcut + first.shortcut.bias[:, None, None]
        )

    def _first_block(self) -> Bottleneck:
        first = self.res5[0]
        assert isinstance(first, Bottleneck)
        return first
