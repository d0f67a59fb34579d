"""The region proposal network: where objects may be, whatever they are.

Reached from `faster_rcnn.py`. Ren et al., 2015 (https://arxiv.org/abs/1506.01497), with
detectron2's rules: the best anchors of every level, boxes clipped to the picture, empty ones
dropped, suppression within a level, then all levels ranked together.

Letters: B pictures, C channels, H x W cells of a level, A anchors a cell, N = H * W * A.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stages.distill.teacher.anchors import cell_anchors, grid_anchors
from stages.distill.teacher.boxes import clip, decode, is_nonempty
from stages.distill.teacher.net_config import ProposalConfig
from stages.distill.teacher.nms import nms
from stages.distill.teacher.pooler import Level

DELTA_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


class AnchorScores(NamedTuple):
    """What the network says of a level's anchors, which are by row, column, anchor."""

    logits: Tensor  # [B, N]
    deltas: Tensor  # [B, N, 4]
    anchors: Tensor  # [N, 4], pixels


class Proposals(NamedTuple):
    """Boxes of one picture that may hold an object, by falling logit."""

    boxes: Tensor  # [P, 4], pixels
    logits: Tensor  # [P]


class ProposalNetwork(nn.Module):
    """Scores and moves the anchors of every level with the same three convolutions."""

    def __init__(self, width: int, config: ProposalConfig) -> None:
        super().__init__()
        self.config = config
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.objectness_logits = nn.Conv2d(width, config.num_anchors, 1)
        self.anchor_deltas = nn.Conv2d(width, config.num_anchors * 4, 1)
        for layer in (self.conv, self.objectness_logits, self.anchor_deltas):
            nn.init.normal_(layer.weight, std=0.01)

    def forward(self, levels: list[Level]) -> list[AnchorScores]:
        """Scores of every level's anchors."""
        return [self._score(level, sizes)
                for level, sizes in zip(levels, self.config.anchor_sizes_px)]

    def _score(self, level: Level, sizes_px: tuple[float, ...]) -> AnchorScores:
        hidden = torch.relu(self.conv(level.feature))
        logits = self.objectness_logits(hidden).permute(0, 2, 3, 1).flatten(1)
        deltas = self.anchor_deltas(hidden).permute(0, 2, 3, 1).reshape(len(hidden), -1, 4)
        cell = cell_anchors(sizes_px, self.config.anchor_ratios).to(deltas)
        grid = (hidden.shape[2], hidden.shape[3])
        return AnchorScores(logits, deltas, grid_anchors(cell, grid, level.stride))

    @torch.no_grad()
    def propose(self, scores: list[AnchorScores], sizes: list[tuple[int, int]]
                ) -> list[Proposals]:
        """Proposals of every picture, of `sizes` (height, width) without padding, in pixels."""
        best = [self._best_anchors(level) for level in scores]
        boxes = torch.cat([level_boxes for level_boxes, _ in best], 1)
        logits = torch.cat([level_logits for _, level_logits in best], 1)
        level_index = torch.cat([
            torch.full_like(level_logits[0], index, dtype=torch.long)
            for index, (_, level_logits) in enumerate(best)])
        return [self._choose(clip(picture_boxes, size), picture_logits, level_index)
                for picture_boxes, picture_logits, size in zip(boxes, logits, sizes)]

    def _best_anchors(self, level: AnchorScores) -> tuple[Tensor, Tensor]:
        """Boxes [B, K, 4] and logits [B, K] of a level's best anchors."""
        order = torch.sort(level.logits, dim=1, descending=True, stable=True).indices
        order = order[:, :self.config.num_candidates]
        logits = level.logits.gather(1, order)
        deltas = level.deltas.gather(1, order[..., None].expand(-1, -1, 4))
        boxes = decode(level.anchors[order.flatten()], deltas.reshape(-1, 4), DELTA_WEIGHTS)
        return boxes.view(deltas.shape), logits

    def _choose(self, boxes: Tensor, logits: Tensor, level_index: Tensor) -> Proposals:
        """The proposals of one picture from its candidates."""
        usable = torch.nonzero(is_nonempty(boxes)).flatten()
        boxes, logits, level_index = boxes[usable], logits[usable], level_index[usable]
        kept = nms(boxes, logits, level_index, threshold=self.config.iou,
                   max_kept=self.config.num_proposals)
        return Proposals(boxes[kept], logits[kept])
