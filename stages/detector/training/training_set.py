"""Makes training batches of labelled pictures, each a pure function of (seed, step).

Which pictures share a step is `sharding.order.order`: like shapes together, every picture once an
epoch. Decoded and resized pictures stay in memory up to a bound; those beyond it are read and
decoded every time.

Letters: B pictures, H x W pixels of the largest of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sharding.order.order import Order
from stages.detector.net_config import PictureConfig
from stages.detector.ops.resize import prepare, resized_size, scales, stack
from stages.detector.training.augmentation import draw_flips, flipped, jittered_size
from stages.detector.training.config import TeachConfig
from stages.detector.training.labeled_pictures import LabeledPictures, Truth
from stages.distributed import Ranks


class Batch(NamedTuple):
    """A rank's pictures of one step, resized; padded at the right and bottom to the size of the
    step's largest."""

    keys: list[str]
    pictures: Tensor  # [B, 3, H, W], normalised
    sizes: list[tuple[int, int]]  # (height, width) in pixels, without padding
    truths: list[Truth]  # boxes in pixels of `pictures`
    num_of_step: int  # pictures of the step on all ranks


class TrainingSet:
    """Batches by step, for ever; they run on from epoch to epoch."""

    def __init__(
        self, labelled: LabeledPictures, config: TeachConfig, *, seed: int, device: torch.device
    ) -> None:
        self.config, self.seed, self.device = config, seed, device
        self._labelled = labelled
        self._sizes = [
            resized_size((place.height, place.width), config.net.picture)
            for place in labelled.places
        ]
        self._cache: dict[int, Tensor] = {}
        self._cache_bytes_left = config.cache_bytes
        shards: list[list[int]] = [[] for _ in range(labelled.num_shards)]
        for index, place in enumerate(labelled.places):
            shards[place.shard].append(index)
        self._shards = shards
        self._order = Order(
            [size[::-1] for size in self._sizes],
            [len(shard) for shard in shards],
            seed=seed,
            micro_batch_size=config.micro_batch_size,
            shape_step_px=config.shape_step_px,
            window_num_shards=config.window_num_shards,
        )

    def batch(self, step: int, ranks: Ranks = Ranks()) -> Batch:
        """This rank's part of the batch of `step`, from 0, every `ranks.size`th picture; there may
        be none. Raises ShardError where a picture's bytes have changed."""
        of_step = [self._shards[shard][place] for shard, place in self._order[step].samples]
        indices = of_step[ranks.rank :: ranks.size]
        config = jittered_size(self.config, seed=self.seed, step=step)
        pictures = [self._picture(index, config) for index in indices]
        sizes = [(picture.shape[0], picture.shape[1]) for picture in pictures]
        truths = [self._scaled_truth(index, config) for index in indices]
        if self.config.flip:
            is_flipped = draw_flips(len(of_step), seed=self.seed, step=step)
            for row in torch.nonzero(is_flipped[ranks.rank :: ranks.size]).flatten():
                pictures[row] = pictures[row].flip(1)
                truths[row] = flipped(truths[row], sizes[row][1])
        places = [self._labelled.places[index] for index in of_step]
        resized = [resized_size((place.height, place.width), config) for place in places]
        canvas = (max(size[0] for size in resized), max(size[1] for size in resized))
        return Batch(
            keys=[self._labelled.key(index) for index in indices],
            pictures=stack(pictures, self.config.net.picture, self.device, canvas=canvas),
            sizes=sizes,
            truths=[Truth(*(part.to(self.device) for part in truth)) for truth in truths],
            num_of_step=len(of_step),
        )

    def _picture(self, index: int, config: PictureConfig) -> Tensor:
        """A picture, resized: [H, W, 3]. With one size for all steps the cache holds it so, else
        as it was decoded."""
        if len(self.config.scale_jitter) == 1 and not self.config.late_steps:
            return self._cached(
                index, lambda: prepare(self._labelled.picture(index), config).pixels
            )
        return prepare(self._cached(index, lambda: self._labelled.picture(index)), config).pixels

    def _cached(self, index: int, make: Callable[[], Tensor]) -> Tensor:
        """What `make` gives for a picture, kept while there is room."""
        if index in self._cache:
            return self._cache[index]
        picture = make()
        if picture.nbytes <= self._cache_bytes_left:
            self._cache[index] = picture
            self._cache_bytes_left -= picture.nbytes
        return picture

    def _scaled_truth(self, index: int, config: PictureConfig) -> Truth:
        """The truth of a picture in pixels of the one that `config` makes of it."""
        place, truth = self._labelled.places[index], self._labelled.truth(index)
        scale = scales((place.height, place.width), config)
        return truth._replace(boxes=truth.boxes * torch.tensor(scale * 2))
