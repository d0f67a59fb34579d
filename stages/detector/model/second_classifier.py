"""A second, linear classifier of boxes on the ResNet's last two stages.

Ours. A pyramid's levels and its box head begin at random and see few pictures; the outputs of res4
and res5 are those of published weights, or near. Both classifiers err on other boxes, so that the
geometric mean of their probabilities errs less. It has a loss of its own, whose gradient does not
reach the ResNet.

Letters: R boxes, L labels (background not counted).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.detector.ops.pooler import Level, pool

DROPOUT = 0.3
NUM_BINS = (1, 2)  # a box's side in bins, of res4 and res5
SAMPLING_RATIOS = (3, 2)


class SecondClassifier(nn.Module):
    """Class logits, background last, of what res4 and res5 give in a box."""

    def __init__(self, stage_widths: tuple[int, int], num_labels: int) -> None:
        """stage_widths: channels of res4 and res5."""
        super().__init__()
        num_inputs = sum(
            width * bins**2 for width, bins in zip(stage_widths, NUM_BINS, strict=True)
        )
        self.cls_score = nn.Linear(num_inputs, num_labels + 1)
        nn.init.zeros_(self.cls_score.weight)
        nn.init.zeros_(self.cls_score.bias)

    def forward(self, stages: list[Level], boxes: list[Tensor]) -> Tensor:
        """stages: the maps of res4 and res5; boxes: one [R_i, 4] a picture -> logits [R, L + 1]."""
        parts = [
            pool([stage], boxes, num_bins=bins, sampling_ratio=ratio).flatten(1)
            for stage, bins, ratio in zip(stages, NUM_BINS, SAMPLING_RATIOS, strict=True)
        ]
        with torch.autocast(stages[0].feature.device.type, enabled=False):
            # Roots: few channels are many times as large as the others.
            roots = torch.cat(parts, 1).detach().float().clamp(min=0).sqrt()
            normalized = functional.layer_norm(roots, roots.shape[1:])
            return self.cls_score(functional.dropout(normalized, DROPOUT, self.training))


def joined(logits: Tensor, second: Tensor, weight: float) -> Tensor:
    """Logits [.., L + 1] whose softmax is the geometric mean of those of `logits` and `second`,
    the latter's weight being `weight`, from 0 to 1."""
    return torch.lerp(logits.log_softmax(-1), second.log_softmax(-1), weight)
