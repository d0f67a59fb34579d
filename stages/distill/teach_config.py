"""The recipe's `teach` part: the teacher's net and how it is trained.

Reached from `pipeline.recipe`; read by `stages.distill.teach` and everything in
`stages/distill/teacher`. The values that stand here are those of the toy world.
"""

from __future__ import annotations

from dataclasses import dataclass, field

BOX_HEADS = ("fc", "conv")


def _check(config: object, valid: dict[str, tuple[bool, str]]) -> None:
    """ValueError for the first field of `valid` {name: (is sound, what is expected)} that is not.
    """
    for name, (is_sound, expected) in valid.items():
        if not is_sound:
            raise ValueError(f"{name}: got {getattr(config, name)!r}, expected {expected}")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The net and how it looks at a picture; kept with the weights in a teacher's folder.

    shorter_px, longer_px: a picture is resized so that its shorter side is `shorter_px`, or less
        where its longer side would go beyond `longer_px`.
    pixel_mean, pixel_std: taken off and divided by, red green blue, of values 0 to 255.
    stem_width: channels after the first convolution, which halves the picture.
    stage_widths, stage_strides: channels and stride (1 or 2) of each stage after it; together the
        strides give the pixels a cell of the feature map spans (2 * 2 * 1 = 4).
    anchor_sizes_px: sides of the anchors, a tuple a level. anchor_ratios: their height over width.
    num_candidates: best anchors of a level that enter suppression.
    num_proposals: proposals of a picture that remain after it.
    proposal_iou: overlap (0 to 1) above which the better of two proposals pushes out the other.
    num_bins: side, in bins, of the features taken from a box.
    sampling_ratio: samples a bin and side.
    box_head: "fc" (two linear layers, as feature pyramid models) or "conv" (convolutions and a
        mean over the bins, as C4 models).
    feature_size: length of an object's feature, which is what the classifier sees.
    attribute_embedding_size, attribute_hidden_size: widths of the attribute predictor.
    score_threshold: objects scoring this or less (0 to 1) are not reported.
    object_iou: overlap above which the better of two objects of a class pushes out the other.
    max_objects: most objects of a picture. num_top: classes in an object's soft label.
    """

    shorter_px: int = 96
    longer_px: int = 512
    pixel_mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    pixel_std: tuple[float, float, float] = (64.0, 64.0, 64.0)
    stem_width: int = 24
    stage_widths: tuple[int, ...] = (48, 64)
    stage_strides: tuple[int, ...] = (2, 1)
    anchor_sizes_px: tuple[tuple[float, ...], ...] = ((20.0, 32.0),)
    anchor_ratios: tuple[float, ...] = (1.0,)
    num_candidates: int = 64
    num_proposals: int = 32
    proposal_iou: float = 0.7
    num_bins: int = 7
    sampling_ratio: int = 1
    box_head: str = "fc"
    feature_size: int = 128
    attribute_embedding_size: int = 16
    attribute_hidden_size: int = 64
    score_threshold: float = 0.02
    object_iou: float = 0.5
    max_objects: int = 36
    num_top: int = 5

    def __post_init__(self) -> None:
        counts = ("shorter_px", "stem_width", "num_candidates", "num_proposals", "num_bins",
                  "sampling_ratio", "feature_size", "attribute_embedding_size",
                  "attribute_hidden_size", "max_objects", "num_top")
        _check(self, {name: (getattr(self, name) >= 1, "1 or more") for name in counts})
        shares = ("proposal_iou", "score_threshold", "object_iou")
        _check(self, {name: (0.0 <= getattr(self, name) <= 1.0, "0 to 1") for name in shares})
        num_stages = len(self.stage_widths)
        _check(self, {
            "longer_px": (self.longer_px >= self.shorter_px,
                          f"shorter_px, {self.shorter_px}, or more"),
            "pixel_mean": (len(self.pixel_mean) == 3, "three numbers"),
            "pixel_std": (len(self.pixel_std) == 3 and min(self.pixel_std) > 0,
                          "three numbers above 0"),
            "stage_widths": (num_stages >= 1 and min(self.stage_widths) >= 1,
                             "one count of channels or more"),
            "stage_strides": (len(self.stage_strides) == num_stages
                              and set(self.stage_strides) <= {1, 2},
                              f"{num_stages} strides, each 1 or 2"),
            "anchor_sizes_px": (len(self.anchor_sizes_px) == 1
                                and all(sizes and min(sizes) > 0
                                        for sizes in self.anchor_sizes_px),
                                "one tuple (this backbone has one level) of sides above 0"),
            "anchor_ratios": (bool(self.anchor_ratios) and min(self.anchor_ratios) > 0,
                              "ratios above 0"),
            "box_head": (self.box_head in BOX_HEADS, " or ".join(map(repr, BOX_HEADS))),
        })


@dataclass(frozen=True, kw_only=True)
class TeachConfig:
    """Settings of `boxless teach`.

    given: folder of a finished teacher to take instead of training one; null to train.
    net: the teacher's net.
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
        counts = ("num_steps", "micro_batch_size", "num_anchors", "num_regions",
                  "window_num_shards", "shape_step_px", "checkpoint_every_steps",
                  "log_every_steps")
        _check(self, {name: (getattr(self, name) >= 1, "1 or more") for name in counts})
        amounts = ("warmup_steps", "weight_decay", "attribute_weight", "cache_bytes",
                   "num_threads")
        _check(self, {name: (getattr(self, name) >= 0, "0 or more") for name in amounts})
        shares = ("anchor_share", "region_share", "proposal_iou", "anchor_iou_low")
        _check(self, {name: (0.0 < getattr(self, name) <= 1.0, "above 0, to 1")
                      for name in shares})
        _check(self, {
            "learning_rate": (self.learning_rate > 0, "above 0"),
            "momentum": (0.0 <= self.momentum < 1.0, "0 to below 1"),
            "clip_norm": (self.clip_norm > 0, "above 0"),
            "anchor_iou_high": (self.anchor_iou_low <= self.anchor_iou_high <= 1.0,
                                f"anchor_iou_low, {self.anchor_iou_low}, to 1"),
        })
