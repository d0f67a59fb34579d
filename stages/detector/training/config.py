"""The recipe's `teach` part: the teacher's net and how it is trained.

Reached from `pipeline.recipe.recipe`; read by `stages.detector.training.train` and what trains in
`stages/detector`. The values that stand here are those of the toy world.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from stages.detector.net_config import PlainConfig, TeacherConfig, check


@dataclass(frozen=True, kw_only=True)
class TeachConfig:
    """Settings of `boxless teach`.

    given: folder of a finished teacher to take instead of training one; null to train.
    net: the teacher's net; of the small kind, as `teach` trains no full-size one.
    num_steps: optimizer steps. micro_batch_size: pictures a step.
    learning_rate: its peak; it rises over `warmup_steps` and falls to 0 as half a cosine.
    momentum, weight_decay: of SGD. clip_norm: gradients are scaled down to this L2 norm.
    flip: mirror every other picture left to right; off where left and right carry meaning.
    anchor_iou_low, anchor_iou_high: anchors overlapping no object by the first are ground, those
        overlapping one by the second are objects; the loss passes over those between.
    num_anchors: anchors of a picture in the loss. anchor_share: most of them that are objects.
    proposal_iou: overlap from which a proposal takes an object's class, box and attribute.
    num_regions: proposals of a picture in the loss. region_share: most that are objects.
    attribute_weight: weight of the attribute loss; the other four weigh 1.
    window_num_shards: shards whose samples are mixed with each other.
    shape_step_px: pictures whose sides round up to the same multiple share a step.
    checkpoint_every_steps, log_every_steps: how often state is kept and metrics.jsonl grows.
    cache_bytes: decoded pictures kept in memory; beyond it they are read again each time.
    num_threads: CPU threads; 0 leaves PyTorch's choice. The toy's steps are so small that a second
        thread gains a fifth where both cores are idle and loses several times that where not.
    """

    given: str | None = None
    net: TeacherConfig = field(default_factory=TeacherConfig)
    num_steps: int = 700
    micro_batch_size: int = 8
    learning_rate: float = 0.05
    warmup_steps: int = 40
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip_norm: float = 10.0
    flip: bool = True
    anchor_iou_low: float = 0.3
    anchor_iou_high: float = 0.6
    num_anchors: int = 64
    anchor_share: float = 0.5
    proposal_iou: float = 0.5
    num_regions: int = 32
    region_share: float = 0.5
    attribute_weight: float = 0.5
    window_num_shards: int = 64
    shape_step_px: int = 64
    checkpoint_every_steps: int = 100
    log_every_steps: int = 10
    cache_bytes: int = 1 << 29
    num_threads: int = 1

    def __post_init__(self) -> None:
        counts = (
            "num_steps",
            "micro_batch_size",
            "num_anchors",
            "num_regions",
            "window_num_shards",
            "shape_step_px",
            "checkpoint_every_steps",
            "log_every_steps",
        )
        check(self, {name: (getattr(self, name) >= 1, "1 or more") for name in counts})
        amounts = ("warmup_steps", "weight_decay", "attribute_weight", "cache_bytes", "num_threads")
        check(self, {name: (getattr(self, name) >= 0, "0 or more") for name in amounts})
        shares = ("anchor_share", "region_share", "proposal_iou", "anchor_iou_low")
        check(self, {name: (0.0 < getattr(self, name) <= 1.0, "above 0, to 1") for name in shares})
        check(
            self,
            {
                "learning_rate": (self.learning_rate > 0, "above 0"),
                "momentum": (0.0 <= self.momentum < 1.0, "0 to below 1"),
                "clip_norm": (self.clip_norm > 0, "above 0"),
                "anchor_iou_high": (
                    self.anchor_iou_low <= self.anchor_iou_high <= 1.0,
                    f"anchor_iou_low, {self.anchor_iou_low}, to 1",
                ),
            },
        )
        if (
            not isinstance(self.net.backbone, PlainConfig)
            or self.net.inclusive_boxes
            or self.net.proposals.min_side_px > 0
        ):
            raise ValueError(
                f"net: got a backbone of the kind {self.net.backbone.kind!r}, inclusive_boxes "
                f"{self.net.inclusive_boxes} and min_side_px {self.net.proposals.min_side_px}, "
                "expected 'plain', False and 0; a full-size teacher is not trained here but read "
                "from a checkpoint (boxless convert)"
            )
