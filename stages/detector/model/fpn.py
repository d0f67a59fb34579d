"""A feature pyramid over a ResNet: five levels, p2 to p6.

Lin et al., 2017 (https://arxiv.org/abs/1612.03144), in detectron2's layout and with its names
(detectron2/modeling/backbone/fpn.py): levels are summed, not averaged, the coarser one is enlarged
by repeating its cells, and p6 is every second cell of p5. p2 to p5 serve proposals and boxes, p6
proposals alone.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from stages.detector.model.resnet import ResNet
from stages.detector.net_config import ResNetConfig
from stages.detector.ops.pooler import Level

NUM_STAGES = 4
RES4_STRIDE_PX = 16
MULTIPLE_PX = 32  # the stride of res5: cells of all levels then lie on one another


class Pyramid(nn.Module):
    """Backbone of levels of the same width, fine to coarse: five, or fewer by `fpn_finest`."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        assert config.fpn_width is not None
        self.width = config.fpn_width
        self.bottom_up = ResNet(config, num_stages=NUM_STAGES)
        self.strides_px = config.strides_px
        self.first = config.fpn_finest - 2  # place of the finest level's stage
        for place in range(self.first, NUM_STAGES):
            stage_width = config.stage_widths[place]
            self.add_module(f"fpn_lateral{place + 2}", nn.Conv2d(stage_width, self.width, 1))
            self.add_module(
                f"fpn_output{place + 2}", nn.Conv2d(self.width, self.width, 3, padding=1)
            )
        for name, layer in self.named_children():
            if name.startswith("fpn_"):
                assert isinstance(layer, nn.Conv2d) and layer.bias is not None
                nn.init.kaiming_uniform_(layer.weight, a=1)
                nn.init.zeros_(layer.bias)

    def forward(self, pictures: Tensor) -> list[Level]:
        """pictures [B, 3, H, W] -> the finest level to p6, [B, C, H' / stride, W' / stride].

        H' and W' are H and W rounded up to a multiple of 32 pixels; what is added at the right
        and bottom is 0, the mean of a normalised picture.
        """
        return self.maps(pictures)[0]

    def maps(self, pictures: Tensor) -> tuple[list[Level], list[Level]]:
        """pictures [B, 3, H, W] -> what `forward` gives, and the outputs of res4 and res5 as they
        are, [B, width of the stage, H' / 16, W' / 16] and [.., H' / 32, W' / 32]."""
        height, width = pictures.shape[2:]
        padded = functional.pad(pictures, (0, -width % MULTIPLE_PX, 0, -height % MULTIPLE_PX))
        stages = self.bottom_up.stages(padded)
        merged = self._convolve("fpn_lateral5", stages[-1])
        levels = [self._convolve("fpn_output5", merged)]
        for place in reversed(range(self.first, NUM_STAGES - 1)):
            enlarged = functional.interpolate(merged, scale_factor=2.0, mode="nearest")
            merged = self._convolve(f"fpn_lateral{place + 2}", stages[place]) + enlarged
            levels.insert(0, self._convolve(f"fpn_output{place + 2}", merged))
        levels.append(levels[-1][:, :, ::2, ::2])
        last = [Level(stages[-2], RES4_STRIDE_PX), Level(stages[-1], MULTIPLE_PX)]
        return [Level(feature, stride) for feature, stride in zip(levels, self.strides_px)], last

    def _convolve(self, name: str, feature: Tensor) -> Tensor:
        return self.get_submodule(name)(feature)
