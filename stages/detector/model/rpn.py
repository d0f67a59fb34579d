"""The region proposal network (RPN).

Ren et al., 2015 (https://arxiv.org/abs/1506.01497), with detectron2's rules: the best anchors of
every level, boxes clipped to the picture, empty ones dropped, suppression within a level, then all
levels ranked together. Caffe's models drop small boxes too, and before the best are taken.

Letters: B pictures, C channels, H x W cells of a level, A anchors a cell, N = H * W * A.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from boxless.errors import BoxlessError
from stages.detector.model.anchors import cell_anchors, grid_anchors
from stages.detector.net_config import ProposalConfig
from stages.detector.ops.boxes import (
    NOT_FINITE,
    clip_to,
    decode,
    far_corners,
    is_nonempty,
    sides,
)
from stages.detector.ops.nms import nms_of_pictures
from stages.detector.ops.pooler import Level

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

    def __init__(self, width: int, config: ProposalConfig, *, inclusive: bool) -> None:
        """For levels of `width` channels; `inclusive` boxes are those of `boxes.py`."""
        super().__init__()
        self.config, self.inclusive = config, inclusive
        hidden_width = config.hidden_width or width
        self.conv = nn.Conv2d(width, hidden_width, 3, padding=1)
        self.objectness_logits = nn.Conv2d(hidden_width, config.num_anchors, 1)
        self.anchor_deltas = nn.Conv2d(hidden_width, config.num_anchors * 4, 1)
        for layer in (self.conv, self.objectness_logits, self.anchor_deltas):
            nn.init.normal_(layer.weight, std=0.01)

    def forward(self, levels: list[Level]) -> list[AnchorScores]:
        """Scores of every level's anchors, in single precision also under autocast."""
        return [self._score(level, self._cell_anchors(index)) for index, level in enumerate(levels)]

    def _cell_anchors(self, index: int) -> Tensor:
        """The anchors [A, 4] of a cell of the level `index`."""
        if self.config.cell_anchors is not None:
            return torch.tensor(self.config.cell_anchors[index])
        return cell_anchors(self.config.anchor_sizes_px[index], self.config.anchor_ratios)

    def _score(self, level: Level, cell: Tensor) -> AnchorScores:
        hidden = torch.relu(self.conv(level.feature))
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.float()
            logits = self.objectness_logits(hidden).permute(0, 2, 3, 1).flatten(1)
            deltas = self.anchor_deltas(hidden).permute(0, 2, 3, 1).reshape(len(hidden), -1, 4)
        grid = (hidden.shape[2], hidden.shape[3])
        return AnchorScores(logits, deltas, grid_anchors(cell.to(deltas), grid, level.stride))

    @torch.no_grad()
    def propose(
        self,
        scores: list[AnchorScores],
        sizes: list[tuple[int, int]],
        scales: list[tuple[float, float]] | None = None,
    ) -> list[Proposals]:
        """Proposals of every picture, of `sizes` (height, width) without padding, in pixels.

        scales: by what each picture was enlarged, along x and y; needed with `min_side_px`.
        Raises ValueError without them, and in evaluation mode where a picture's scores or boxes
        are not finite: they would be dropped as if nothing had been found.
        """
        if self.config.min_side_px > 0:
            if scales is None:
                raise BoxlessError(
                    f"scales: got None, expected one a picture, as min_side_px, "
                    f"{self.config.min_side_px}, is in pixels of the original; pass "
                    "Prepared.scale"
                )
            scores = [self._without_small(level, sizes, scales) for level in scores]
        best = [self._best_anchors(level) for level in scores]
        boxes = torch.cat([level_boxes for level_boxes, _ in best], 1)
        logits = torch.cat([level_logits for _, level_logits in best], 1)
        level_index = torch.cat(
            [
                torch.full_like(level_logits, index, dtype=torch.long)
                for index, (_, level_logits) in enumerate(best)
            ],
            1,
        )
        corners = far_corners(boxes, sizes)[:, None]
        return self._choose(clip_to(boxes, corners, inclusive=self.inclusive), logits, level_index)

    def _without_small(
        self, level: AnchorScores, sizes: list[tuple[int, int]], scales: list[tuple[float, float]]
    ) -> AnchorScores:
        """The level with a logit of minus infinity where the box is too small or empty."""
        boxes = decode(
            level.anchors.repeat(len(sizes), 1),
            level.deltas.flatten(0, 1),
            DELTA_WEIGHTS,
            inclusive=self.inclusive,
        ).view(level.deltas.shape)
        corners = far_corners(boxes, sizes)[:, None]
        boxes = clip_to(boxes, corners, inclusive=self.inclusive)
        least = boxes.new_tensor(scales)[:, None] * self.config.min_side_px
        is_large = (sides(boxes, inclusive=self.inclusive) > least).all(2)
        is_kept = is_large & is_nonempty(boxes)
        return level._replace(logits=level.logits.masked_fill(~is_kept, -math.inf))

    def _best_anchors(self, level: AnchorScores) -> tuple[Tensor, Tensor]:
        """Boxes [B, K, 4] and logits [B, K] of a level's best anchors."""
        order = torch.sort(level.logits, dim=1, descending=True, stable=True).indices
        order = order[:, : self.config.num_candidates]
        logits = level.logits.gather(1, order)
        deltas = level.deltas.gather(1, order[..., None].expand(-1, -1, 4))
        boxes = decode(
            level.anchors[order.flatten()],
            deltas.reshape(-1, 4),
            DELTA_WEIGHTS,
            inclusive=self.inclusive,
        )
        return boxes.view(deltas.shape), logits

    def _choose(self, boxes: Tensor, logits: Tensor, level_index: Tensor) -> list[Proposals]:
        """The proposals of every picture from its candidates [B, K, 4], their logits and levels
        [B, K]."""
        is_usable = is_nonempty(boxes) & (logits > -math.inf)
        # NaNs are sorted to the best, so here are all that matter. By one read from the device.
        is_broken = logits.isnan() | boxes.isnan().any(-1)
        counts, broken = torch.stack([is_usable.sum(1), is_broken.sum(1)]).tolist()
        if not self.training and any(broken):
            raise BoxlessError(NOT_FINITE)
        usable = torch.nonzero(is_usable.flatten()).flatten()
        boxes, logits = boxes.flatten(0, 1)[usable], logits.flatten()[usable]
        num_proposals = self.config.num_proposals
        if not self.training and self.config.inference_proposals is not None:
            num_proposals = self.config.inference_proposals
        kept, counts = nms_of_pictures(
            boxes,
            logits,
            level_index.flatten()[usable],
            counts,
            threshold=self.config.iou,
            max_kept=num_proposals,
            inclusive=self.inclusive,
        )
        by_picture = zip(boxes[kept].split(counts), logits[kept].split(counts))
        return [Proposals(*picture) for picture in by_picture]
