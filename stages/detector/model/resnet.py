"""ResNets, the backbones of full-size teachers.

He et al., 2015 (https://arxiv.org/abs/1512.03385), in detectron2's layout and with its names
(detectron2/modeling/backbone/resnet.py); with groups it is a ResNeXt (Xie et al., 2016,
https://arxiv.org/abs/1611.05431).

There are no normalisation layers: such a teacher's are frozen, so they are folded into the weight
and bias of the convolution before them when a checkpoint is read (`weights.py`).

Letters: B pictures, H x W pixels or cells, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.detector.net_config import ResNetConfig
from stages.detector.ops.pooler import Level

RES5 = 3  # place of res5 among the stages res2 to res5


class Stem(nn.Module):
    """A convolution and a maximum, each of stride 2."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.max_pool = config.max_pool
        self.conv1 = nn.Conv2d(3, config.stem_width, 7, 2, padding=3)

    def forward(self, pictures: Tensor) -> Tensor:
        """pictures [B, 3, H, W] -> [B, C, about H / 4, about W / 4]."""
        hidden = torch.relu_(self.conv1(pictures))
        if self.max_pool == "caffe":
            return functional.max_pool2d(hidden, 3, 2, ceil_mode=True)
        return functional.max_pool2d(hidden, 3, 2, padding=1)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a way round them."""

    def __init__(
        self,
        width_in: int,
        width: int,
        bottleneck_width: int,
        *,
        stride: int,
        groups: int,
        dilation: int,
        stride_in_1x1: bool,
    ) -> None:
        super().__init__()
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.shortcut = nn.Conv2d(width_in, width, 1, stride) if width_in != width else None
        self.conv1 = nn.Conv2d(width_in, bottleneck_width, 1, stride_1x1)
        self.conv2 = nn.Conv2d(
            bottleneck_width,
            bottleneck_width,
            3,
            stride_3x3,
            padding=dilation,
            dilation=dilation,
            groups=groups,
        )
        self.conv3 = nn.Conv2d(bottleneck_width, width, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """feature [B, C_in, H, W] -> [B, C, H / stride, W / stride], rounded up."""
        shortcut = feature if self.shortcut is None else self.shortcut(feature)
        return self.finish(self.conv1(feature), shortcut)

    def finish(self, hidden: Tensor, shortcut: Tensor) -> Tensor:
        """The block's result from what `conv1` gave and what goes round."""
        hidden = torch.relu_(self.conv2(torch.relu_(hidden)))
        return torch.relu_(self.conv3(hidden) + shortcut)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a way round them, as in ResNet 18 and 34."""

    def __init__(self, width_in: int, width: int, *, stride: int, dilation: int) -> None:
        super().__init__()
        self.shortcut = nn.Conv2d(width_in, width, 1, stride) if width_in != width else None
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)

    def forward(self, feature: Tensor) -> Tensor:
        """feature [B, C_in, H, W] -> [B, C, H / stride, W / stride], rounded up."""
        shortcut = feature if self.shortcut is None else self.shortcut(feature)
        return torch.relu_(self.conv2(torch.relu_(self.conv1(feature))) + shortcut)


def build_stage(config: ResNetConfig, place: int) -> nn.Sequential:
    """The blocks of the stage res2 (`place` 0) to res5 (`place` 3)."""
    dilation = config.res5_dilation if place == RES5 else 1
    width, width_in = config.stage_widths[place], (config.stem_width, *config.stage_widths)[place]
    blocks: list[nn.Module] = []
    for number in range(config.num_blocks[place]):
        halves = number == 0 and place > 0 and dilation == 1
        stride = 2 if halves else 1
        if config.block == "basic":
            blocks.append(BasicBlock(width_in, width, stride=stride, dilation=dilation))
        else:
            blocks.append(
                Bottleneck(
                    width_in,
                    width,
                    config.bottleneck_widths[place],
                    stride=stride,
                    groups=config.groups,
                    dilation=dilation,
                    stride_in_1x1=config.stride_in_1x1,
                )
            )
        width_in = width
    return nn.Sequential(*blocks)


class ResNet(nn.Module):
    """Stem and stages, res2 first."""

    def __init__(self, config: ResNetConfig, *, num_stages: int) -> None:
        super().__init__()
        self.width = config.stage_widths[num_stages - 1]
        self.strides_px = config.strides_px
        self.stem = Stem(config)
        self.names = [f"res{place + 2}" for place in range(num_stages)]
        for place, name in enumerate(self.names):
            self.add_module(name, build_stage(config, place))

    def stages(self, pictures: Tensor) -> list[Tensor]:
        """pictures [B, 3, H, W] -> what each stage gives, fine to coarse."""
        feature, features = self.stem(pictures), []
        for name in self.names:
            feature = self.get_submodule(name)(feature)
            features.append(feature)
        return features

    def forward(self, pictures: Tensor) -> list[Level]:
        """pictures [B, 3, H, W] -> the last stage as the only level."""
        (stride_px,) = self.strides_px
        return [Level(self.stages(pictures)[-1], stride_px)]
