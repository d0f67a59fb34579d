"""The recipe's `teach` part: the teacher's net and how it is trained.

The defaults are those of the toy data set.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from boxless.errors import BoxlessError
from stages.detector.net_config import TeacherConfig, check

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class TeachConfig:
    """Settings of `boxless teach`.

    given: folder of a finished teacher to take instead of training one; null to train.
    net: the teacher's net.
    initial_weights: published weights to start from (`initial_weights.py`): a folder of a
        transformers ResNet or of a teacher, a file of torchvision or detectron2; null is random.
    freeze_at: the ResNet's stem (1), res2 (2) ... res5 (5) and all before it stay as they are;
        0 trains everything. detectron2's BACKBONE.FREEZE_AT, whose default is 2.
    precision: "fp32"; "tf32", its products in TF32 (NVIDIA's GPUs since Ampere); or "bf16" or
        "fp16" for convolutions and linear layers under autocast, fp16 with a loss scale that finds
        itself.
    num_steps: optimizer steps. micro_batch_size: pictures a step, shared out to the ranks.
    optimizer: "sgd" or "adamw". momentum: of sgd.
    learning_rate: peak learning rate. warmup_steps: steps in which it rises to the peak.
    schedule: how it falls afterwards: "cosine" to 0 as half a cosine, or "steps" to a tenth at each
        of `decay_steps`. decay_steps: steps at which the schedule "steps" decays.
    new_layers_rate: factor of the learning rate for layers that `initial_weights` do not have.
    weight_decay: of weights, not of biases. clip_norm: gradients are scaled down to this L2 norm.
    scale_jitter: each step resizes its pictures to the size of `net.picture` times one of these.
    late_steps, late_scale_jitter: the last so many steps take these sizes instead: small pictures
        first, when most is to be learnt, then large ones.
    flip: mirror every other picture left to right; off where left and right carry meaning.
    anchor_iou_low, anchor_iou_high: anchors overlapping no object by the first are ground, those
        overlapping one by the second are objects; the loss passes over those between.
    num_anchors: anchors of a picture in the loss. anchor_share: most of them that are objects.
    proposal_iou: overlap from which a proposal takes an object's class, box and attribute.
    num_regions: proposals of a picture in the loss. region_share: most that are objects.
    attribute_weight: weight of the attribute loss; the other four weigh 1.
    window_num_shards: shards whose samples are mixed with each other.
    shape_step_px: pictures whose sides round up to the same multiple share a step.
    evaluate_every_steps: held-out pictures are scored this often and the best weights are the
        teacher; 0 scores the last weights alone.
    checkpoint_every_steps, log_every_steps: how often state is kept and metrics.jsonl grows.
    cache_bytes: decoded pictures kept in memory; beyond it they are read again each time.
    num_threads: CPU threads; 0 leaves PyTorch's choice. The toy's steps are so small that a second
        thread gains a fifth where both cores are idle and loses several times that where not.
    """

    given: str | None = None
    net: TeacherConfig = field(default_factory=TeacherConfig)
    initial_weights: str | None = None
    freeze_at: int = 0
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    num_steps: int = 700
    micro_batch_size: int = 8
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.05
    warmup_steps: int = 40
    schedule: Literal["cosine", "steps"] = "cosine"
    decay_steps: tuple[int, ...] = ()
    new_layers_rate: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip_norm: float = 10.0
    scale_jitter: tuple[float, ...] = (1.0,)
    late_steps: int = 0
    late_scale_jitter: tuple[float, ...] = ()
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
    evaluate_every_steps: int = 0
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
        amounts = (
            "warmup_steps",
            "weight_decay",
            "attribute_weight",
            "evaluate_every_steps",
            "cache_bytes",
            "num_threads",
        )
        check(self, {name: (getattr(self, name) >= 0, "0 or more") for name in amounts})
        shares = ("anchor_share", "region_share", "proposal_iou", "anchor_iou_low")
        check(self, {name: (0.0 < getattr(self, name) <= 1.0, "above 0, to 1") for name in shares})
        self._check_optimizer()
        check(
            self,
            {
                "freeze_at": (0 <= self.freeze_at <= 5, "0 to 5"),
                "precision": (self.precision in PRECISIONS, "'fp32', 'tf32', 'bf16' or 'fp16'"),
                "scale_jitter": (
                    bool(self.scale_jitter) and min(self.scale_jitter) > 0,
                    "factors above 0",
                ),
                "late_steps": (0 <= self.late_steps <= self.num_steps, "0 to num_steps"),
                "late_scale_jitter": (
                    bool(self.late_scale_jitter) == bool(self.late_steps)
                    and all(factor > 0 for factor in self.late_scale_jitter),
                    "factors above 0 with late_steps, none without",
                ),
                "anchor_iou_high": (
                    self.anchor_iou_low <= self.anchor_iou_high <= 1.0,
                    f"anchor_iou_low, {self.anchor_iou_low}, to 1",
                ),
            },
        )
        if self.net.inclusive_boxes or self.net.proposals.min_side_px > 0:
            raise BoxlessError(
                f"net: got inclusive_boxes {self.net.inclusive_boxes} and min_side_px "
                f"{self.net.proposals.min_side_px}, expected False and 0; a teacher of Caffe's kind "
                "is not trained here but read from a checkpoint (boxless convert)"
            )

    def _check_optimizer(self) -> None:
        check(
            self,
            {
                "optimizer": (self.optimizer in ("sgd", "adamw"), "'sgd' or 'adamw'"),
                "schedule": (self.schedule in ("cosine", "steps"), "'cosine' or 'steps'"),
                "decay_steps": (
                    list(self.decay_steps) == sorted(set(self.decay_steps))
                    and all(0 < step < self.num_steps for step in self.decay_steps)
                    and bool(self.decay_steps) == (self.schedule == "steps"),
                    f"rising steps below num_steps, {self.num_steps}, with the schedule 'steps', "
                    "none with 'cosine'",
                ),
                "new_layers_rate": (self.new_layers_rate > 0, "above 0"),
                "learning_rate": (self.learning_rate > 0, "above 0"),
                "momentum": (0.0 <= self.momentum < 1.0, "0 to below 1"),
                "clip_norm": (self.clip_norm > 0, "above 0"),
            },
        )
