"""The small backbone: plain 3x3 convolutions with batch normalisation, one level out.

It takes the place of the ResNets of full-size teachers: whatever the net, a backbone maps
pictures to a list of levels, fine to coarse.
"""

from __future__ import annotations

from torch import Tensor, nn

from stages.detector.net_config import PlainConfig
from stages.detector.ops.pooler import Level


class PlainBackbone(nn.Module):
    """A stem that halves the picture, then stages of two convolutions each."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.width = config.stage_widths[-1]
        (self.stride,) = config.strides_px
        layers = [_convolution(3, config.stem_width, 2)]
        width = config.stem_width
        for next_width, stride in zip(config.stage_widths, config.stage_strides):
            layers += [
                _convolution(width, next_width, stride),
                _convolution(next_width, next_width, 1),
            ]
            width = next_width
        self.layers = nn.Sequential(*layers)

    def forward(self, pictures: Tensor) -> list[Level]:
        """pictures [B, 3, H, W] -> one level [B, C, ceil(H / stride), ceil(W / stride)]."""
        return [Level(self.layers(pictures), self.stride)]


def _convolution(width_in: int, width_out: int, stride: int) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU."""
    convolution = nn.Conv2d(width_in, width_out, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(width_out), nn.ReLU(inplace=True))
