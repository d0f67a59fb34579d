"""Changing numbers of ranks over the same epochs: was every sample trained on exactly once?

    python -m benchmarks.sharding.positions [--worlds 24 16 7 48] [--epochs 4] [--shards 300]
        [--seed 0]

Worlds of so many ranks follow each other, over and over, each with another number of DataLoader
workers a rank. Every rank takes its turns as sharding.order.turns deals them; its workers have the
next ones in hand. After a random number of steps a world is stopped in the middle of one, some
ranks further than others: that step has no effect, what the workers had in hand is lost, and the
next world has only the position of the last whole step, and computes the order again. A step is 48
micro-batches whatever the world. Printed are the worlds and, for each epoch, how many samples came
more than once and not at all; exit status 1 unless both are 0.
"""

from __future__ import annotations

import argparse
import itertools
import random
from dataclasses import dataclass

import numpy as np

from sharding.order.order import Order
from sharding.order.turns import turns

STEP_SIZE = 48
LONGEST_STEPS, MOST_WORKERS, PREFETCH = 60, 8, 2


@dataclass(frozen=True)
class Samples:
    """A set: the shapes of all samples, px [N, 2], and how many each shard has [S]."""

    shapes: np.ndarray
    shard_sizes: np.ndarray

    def order(self) -> Order:
        """Its order, made again, as a process that starts makes it."""
        return Order(
            self.shapes,
            self.shard_sizes,
            seed=1,
            micro_batch_size=32,
            window_num_shards=16,
            shape_step_px=64,
        )


def main() -> int:
    """Run the drill; exit status 1 if a sample was repeated or lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, nargs="+", default=[24, 16, 7, 48])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--shards", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    samples = make_samples(options.shards, options.seed)
    seen = drill(samples, options.worlds, options.epochs, options.seed)
    for epoch, times in enumerate(seen):
        print(
            f"epoch {epoch}: samples {len(times):,}  repeats {int((times > 1).sum())}  "
            f"losses {int((times == 0).sum())}"
        )
    repeats, losses = int((seen > 1).sum()), int((seen == 0).sum())
    print(
        f"all: {seen.size:,} samples in {options.epochs} epochs, repeats {repeats}, losses {losses}"
    )
    return int(repeats + losses > 0)


def make_samples(num_shards: int, seed: int) -> Samples:
    """Shards of 0 to 2000 samples of photographs' shapes, some rare."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 2001, num_shards)
    shapes = np.array([(640, 480), (480, 640), (640, 427), (500, 375), (375, 500), (1024, 768)])
    odds = [0.4, 0.25, 0.2, 0.1, 0.049, 0.001]
    return Samples(shapes[rng.choice(len(shapes), sizes.sum(), p=odds)].astype(np.uint16), sizes)


def drill(samples: Samples, worlds: list[int], num_epochs: int, seed: int) -> np.ndarray:
    """How often each sample came in each epoch, [E, N]; prints a line a world."""
    chance = random.Random(seed)
    end = num_epochs * samples.order().num_micro_batches
    seen = np.zeros((num_epochs, len(samples.shapes)), np.int32)
    position = 0
    print("ranks  workers  from position  whole steps  turns for nothing  lost in hand")
    for world_size in itertools.cycle(worlds):
        if position >= end:
            return seen
        num_workers = chance.randint(1, MOST_WORKERS)
        num_left = -(-(end - position) // STEP_SIZE)
        num_steps = min(num_left, chance.randint(1, LONGEST_STEPS))
        masked, in_hand = _run(
            samples, seen, world_size, num_workers, (position, end), num_steps, chance
        )
        print(f"{world_size:5}{num_workers:9}{position:15,}{num_steps:13}{masked:19}{in_hand:14}")
        position = min(end, position + num_steps * STEP_SIZE)
    raise AssertionError("a cycle has no end")


def _run(
    samples: Samples,
    seen: np.ndarray,
    world_size: int,
    num_workers: int,
    reach: tuple[int, int],
    num_steps: int,
    chance: random.Random,
) -> tuple[int, int]:
    """One world's life, counted in `seen`; its turns that were padding, and what it had in hand.

    reach: the position where it starts, and the end of the whole training.
    """
    order = samples.order()
    starts = np.concatenate([[0], np.cumsum(samples.shard_sizes)])
    turns_a_step = -(-STEP_SIZE // world_size)
    masked = in_hand = 0
    for rank in range(world_size):
        mine = turns(reach[0], rank, world_size, step_size=STEP_SIZE, end=reach[1])
        for turn in itertools.islice(mine, num_steps * turns_a_step):
            masked += turn.is_padding
            if not turn.is_padding:
                batch = order[turn.position]
                shards, within = np.array(batch.samples).T
                np.add.at(seen[batch.epoch], starts[shards] + within, 1)
        # It dies: part of a step that does not count, and what its workers had made already.
        begun = chance.randint(0, turns_a_step)
        in_hand += len(list(itertools.islice(mine, begun + PREFETCH * num_workers)))
    return masked, in_hand


if __name__ == "__main__":
    raise SystemExit(main())
