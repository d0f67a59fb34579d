"""Counts how full the batches of an extraction are, on pictures of many sizes.

    python -m benchmarks.detector.planned_batches [--batch 8] [--shard 500]

Sizes alone, so the figures are exact: shards of pictures with sizes as in COCO (the longer side
640, the shorter one mostly 480, 427, 426 and 425, one in four upright) and as on the web (sides of
any length), resized to 600 x 1000 pixels. Four rules: a picture waits for others of its size while
four batches of pictures go by, as before batches were planned; planned over a shard; and planned
with sides padded to multiples of 32 and 64 pixels, with the share of the pixels that are padding.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from stages.detector.net_config import PictureConfig
from stages.detector.ops.resize import padded_size, resized_size
from stages.distill.inference.batch_plan import plan_batches

PICTURE = PictureConfig(shorter_px=600, longer_px=1000)
NUM_SHARDS = 20
BUCKETS_PX = (1, 32, 64)
# The commonest shorter sides of COCO's train2014 with their rough shares; the rest is any.
COCO_SHORTER = {480: 0.40, 427: 0.16, 426: 0.08, 425: 0.05, 428: 0.04, 640: 0.02, 360: 0.02}

Size = tuple[int, int]


def main() -> None:
    """Print the mean batch of each rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--shard", type=int, default=500)
    options = parser.parse_args()
    for name in ("coco", "web"):
        shards = shards_of(name, options.shard)
        print(f"{name}, mean batch of {options.batch} at most, {options.shard} pictures a shard:")
        print(f"  next to each other       {waiting_batch(shards, options.batch):5.2f}")
        for bucket in BUCKETS_PX:
            mean, padding = planned_batch(shards, options.batch, bucket)
            label = "planned" if bucket == 1 else f"planned, padded to {bucket} px"
            print(f"  {label:24} {mean:5.2f}   padding {padding:.1%}")


def shards_of(name: str, num_pictures: int) -> list[list[Size]]:
    """(height, width) after resizing, of the pictures of each shard."""
    random = np.random.default_rng(0)
    draw = _coco_size if name == "coco" else _web_size
    return [
        [resized_size(draw(random), PICTURE) for _ in range(num_pictures)]
        for _ in range(NUM_SHARDS)
    ]


def waiting_batch(shards: Sequence[Sequence[Size]], most: int) -> float:
    """Mean batch where a picture waits for others while 4 * most pictures go by."""
    num_batches = 0
    for sizes in shards:
        open_at: dict[Size, tuple[int, int]] = {}  # by size: place of the first, number
        for place, size in enumerate(sizes):
            first, number = open_at.get(size, (place, 0))
            if number and place - first >= 4 * most:
                num_batches, first, number = num_batches + 1, place, 0
            open_at[size] = (first, number + 1)
            if number + 1 == most:
                num_batches += 1
                del open_at[size]
        num_batches += len(open_at)
    return sum(map(len, shards)) / num_batches


def planned_batch(
    shards: Sequence[Sequence[Size]], most: int, bucket_px: int
) -> tuple[float, float]:
    """Mean batch as distill plans them, and the share of pixels that are padding."""
    num_batches, pixels, padded = 0, 0, 0
    for sizes in shards:
        canvases = [padded_size(size, bucket_px) for size in sizes]
        num_batches += len(plan_batches(canvases, most=most))
        pixels += sum(h * w for h, w in sizes)
        padded += sum(h * w for h, w in canvases)
    return sum(map(len, shards)) / num_batches, 1 - pixels / padded


def _coco_size(random: np.random.Generator) -> Size:
    """The longer side is 640 pixels."""
    known = random.random()
    for shorter, share in COCO_SHORTER.items():
        known -= share
        if known < 0:
            break
    else:
        shorter = int(random.integers(320, 640))
    return (640, shorter) if random.random() < 0.25 else (shorter, 640)


def _web_size(random: np.random.Generator) -> Size:
    """Sides of 200 to 2000 pixels, drawn apart."""
    height, width = random.integers(200, 2001, 2)
    return int(height), int(width)


if __name__ == "__main__":
    main()
