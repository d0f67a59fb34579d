"""Operators that a picture's extraction calls, and results that its host waits for on a GPU.

    python -m benchmarks.detector.counts [--batch 8]

A ResNet-101-C4 with 1,000 proposals, 1,600 labels and 400 attributes, of narrow layers, which
change no count, in "bf16", which takes a batch at once; block sizes are those of a GPU. Counted on
this machine's CPU, so the figures are exact and the same everywhere.
"""

from __future__ import annotations

import argparse
from unittest import mock

import torch

from benchmarks.operator_counts import OperatorCounts
from stages.detector.model import res5_head
from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.net_config import (
    BoxConfig,
    ChoiceConfig,
    PictureConfig,
    ProposalConfig,
    ResNetConfig,
    TeacherConfig,
)
from stages.detector.ops import nms
from stages.detector.predictor import Teacher

NUM_LABELS, NUM_ATTRIBUTES = 1600, 400


def main() -> None:
    """Print both counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    num_operators, num_reads = extraction_counts(options.batch)
    print(
        f"a picture in a batch of {options.batch}: {num_operators:.0f} operators, "
        f"{num_reads:.1f} reads"
    )


def extraction_counts(batch: int, num_proposals: int = 1000) -> tuple[float, float]:
    """Operators and reads a picture."""
    torch.manual_seed(0)
    net = TeacherConfig(
        backbone=ResNetConfig(
            num_blocks=(3, 4, 23, 3),
            stem_width=8,
            stage_widths=(32, 64, 128, 256),
            bottleneck_widths=(8, 16, 32, 64),
        ),
        picture=PictureConfig(shorter_px=320, longer_px=480),
        proposals=ProposalConfig(
            anchor_sizes_px=((32.0, 64.0, 128.0, 256.0),),
            num_candidates=6 * num_proposals,
            num_proposals=num_proposals,
        ),
        boxes=BoxConfig(head="res5", feature_size=256, num_bins=14),
        choice=ChoiceConfig(score_threshold=0.0007),
    )
    teacher = Teacher(
        FasterRCNN(net, num_labels=NUM_LABELS, num_attributes=NUM_ATTRIBUTES),
        label_names=[str(label) for label in range(NUM_LABELS)],
        attribute_names=[str(attribute) for attribute in range(NUM_ATTRIBUTES)],
        fingerprint="narrow",
        precision="bf16",
    )
    pictures = [
        teacher.prepare(torch.randint(0, 256, (240, 360, 3), dtype=torch.uint8))
        for _ in range(batch)
    ]
    with (
        mock.patch.object(res5_head, "BLOCK_BOXES_CPU", res5_head.BLOCK_BOXES),
        mock.patch.object(nms, "BLOCK_BOXES_CPU", nms.BLOCK_BOXES),
        mock.patch.object(nms, "STEPS_A_LOOK_CPU", nms.STEPS_A_LOOK),
        OperatorCounts() as counts,
    ):
        found = teacher.detect(pictures)
    assert all(len(objects) for objects in found), "nothing was found: the counts would be low"
    return counts.num_operators / batch, len(counts.reads) / batch


if __name__ == "__main__":
    main()
