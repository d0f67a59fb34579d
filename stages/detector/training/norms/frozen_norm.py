"""Convolutions whose batch normalisation is frozen, as detectron2 trains ResNets.

A frozen normalisation multiplies each channel by a constant and adds another. Of a finished
teacher both are folded into the convolution (`checkpoints/weights.py`). In training they stay
apart: the weight that the optimizer moves is the one before normalisation, as in detectron2
(layers/batch_norm.py, FrozenBatchNorm2d), since the gradient of the folded one is another.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.model.meta_init import put_weights, shapes_only

SCALE = "norm_scale"


class FrozenNormConv2d(nn.Conv2d):
    """A convolution with the `weight` before normalisation; `norm_scale` [C_out] and `bias` [C_out]
    are the frozen normalisation's."""

    def __init__(self, plain: nn.Conv2d) -> None:
        """Of the sizes of `plain`, whose weight it takes over; the normalisation does nothing."""
        assert plain.bias is not None and isinstance(plain.padding, tuple)
        super().__init__(
            plain.in_channels,
            plain.out_channels,
            plain.kernel_size,  # type: ignore[arg-type]
            plain.stride,  # type: ignore[arg-type]
            plain.padding,  # type: ignore[arg-type]
            plain.dilation,  # type: ignore[arg-type]
            plain.groups,
        )
        self.weight = plain.weight
        self.bias = nn.Parameter(torch.zeros_like(plain.bias), requires_grad=False)
        self.norm_scale: Tensor
        self.register_buffer(SCALE, torch.ones_like(plain.bias))

    def forward(self, feature: Tensor) -> Tensor:
        """feature [B, C_in, H, W] -> [B, C_out, H', W'], normalised."""
        weight = self.weight * self.norm_scale.view(-1, 1, 1, 1)
        return self._conv_forward(feature, weight, self.bias)


def freeze_norm(model: nn.Module, name: str) -> FrozenNormConv2d:
    """Puts a FrozenNormConv2d in the place of the convolution `name` of `model`."""
    parent, _, child = name.rpartition(".")
    plain = model.get_submodule(name)
    assert isinstance(plain, nn.Conv2d), name
    frozen = FrozenNormConv2d(plain)
    setattr(model.get_submodule(parent), child, frozen)
    return frozen


def folded(model: FasterRCNN) -> FasterRCNN:
    """The same net with every frozen normalisation folded into its convolution; weights that need
    no folding are shared."""
    state = model.state_dict()
    for name in [name for name in state if name.endswith(f".{SCALE}")]:
        weight = f"{name.removesuffix(SCALE)}weight"
        state[weight] = state[weight] * state.pop(name).view(-1, 1, 1, 1)
    attributes = model.attribute_predictor
    with shapes_only():
        plain = FasterRCNN(
            model.config,
            num_labels=model.num_labels,
            num_attributes=0 if attributes is None else attributes.num_attributes,
        )
    put_weights(plain, state)
    return plain
