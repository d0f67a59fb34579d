"""Measures of shuffle quality, for our order, webdataset's buffers and a full permutation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sharding.format.catalog import load_manifest, read_catalog, read_shapes, shapes_of_split
from sharding.format.shapes import manifest_shapes
from sharding.order.order import Order
from sharding.order.shuffle_simulation import (
    SampleSequence,
    ShuffleConfig,
    ShuffleMethod,
    batch_shares,
    compare,
    shard_starts,
    shards_of,
)
from sharding.writing.atomic import replacing

# How far to either side a sample's neighbours are looked for.
_REACH = 8
# Points of a picture's panel.
_NUM_POINTS = 20_000


@dataclass(frozen=True, kw_only=True)
class ShuffleQuality:
    """The figures of one way.

    num_shards, step_num_shards: how many shards a micro-batch has samples of, and a step of a
        micro-batch a rank; the mean.
    entropy: of the shards in a micro-batch, over the most that its size allows; the mean, 0 to 1.
    drift: how far any set ever gets ahead of its exact share or behind it, in micro-batches; the
        most that is met in the epoch, 0 where there is one set.
    displacement: how far a sample moves from one epoch to the next, in epochs; the mean. 1/3 by
        chance.
    separation: how far two neighbours are from each other an epoch later; likewise.
    retention: share of samples that have some sample within 8 places in both epochs.
    """

    name: str
    num_shards: float
    step_num_shards: float
    entropy: float
    drift: float
    displacement: float
    separation: float
    retention: float


def measure(
    folder: Path, config: ShuffleConfig, *, picture: Path | None = None
) -> list[ShuffleQuality]:
    """The figures of a folder of finished shards: ours, webdataset's and a permutation's.

    Writes a PNG of the three as well, if `picture` says where. Reads catalog and shapes only, no
    tar. Raises ShardError as read_catalog, ValueError for settings out of range.
    """
    catalog = read_catalog(folder)
    entries = catalog.of_split(config.split)
    num_samples = np.cumsum([entry.num_ok for entry in entries])
    num_shards = max(1, int(np.searchsorted(num_samples, config.most_num_samples, side="right")))
    entries = entries[:num_shards]
    shapes = read_shapes(folder, catalog)
    if shapes is not None:
        shapes = shapes_of_split(shapes, catalog, config.split)[: num_samples[num_shards - 1]]
    else:
        shapes = np.concatenate(
            [manifest_shapes(load_manifest(folder / entry.tar, entry)) for entry in entries]
        )
    sizes = [entry.num_ok for entry in entries]
    order = Order(
        shapes,
        sizes,
        seed=config.seed,
        micro_batch_size=config.micro_batch_size,
        window_num_shards=config.window_num_shards,
        shape_step_px=config.shape_step_px,
    )
    methods = compare(order, [sizes], config)
    if picture is not None:
        draw(picture, methods, [sizes])
    return quality(methods, [sizes], config.num_ranks)


def quality(
    methods: Sequence[ShuffleMethod], sizes: Sequence[Sequence[int]], num_ranks: int
) -> list[ShuffleQuality]:
    """The figures of each way; the first one's shares of the sets count as the exact ratio."""
    shares = batch_shares(methods[0].first, sizes).mean(0)
    found = []
    for way in methods:
        num_shards, entropy = _of_shards(way.first, sizes)
        step_num_shards, _ = _of_shards(_in_steps(way.first, num_ranks), sizes)
        displacement, separation, retention = _of_epochs(way.first.samples, way.second.samples)
        found.append(
            ShuffleQuality(
                name=way.name,
                num_shards=num_shards,
                step_num_shards=step_num_shards,
                entropy=entropy,
                drift=_drift(way.first, sizes, shares),
                displacement=displacement,
                separation=separation,
                retention=retention,
            )
        )
    return found


def _of_shards(sequence: SampleSequence, sizes: Sequence[Sequence[int]]) -> tuple[float, float]:
    """How many shards micro-batches have samples of, the mean, and ShuffleQuality.entropy."""
    num_shards = len(shard_starts(sizes)) - 1
    batch_sizes = np.diff(sequence.edges)
    batches = np.repeat(np.arange(len(batch_sizes)), batch_sizes)
    pairs, counts = np.unique(
        batches * num_shards + shards_of(sequence.samples, sizes), return_counts=True
    )
    batch_of_pair = pairs // num_shards
    shares = counts / batch_sizes[batch_of_pair]
    entropies = np.bincount(batch_of_pair, -shares * np.log(shares))
    most = np.log(np.minimum(batch_sizes, num_shards))
    # Where only one shard or sample could be, all is mixed that can be.
    relative = np.divide(entropies, most, out=np.ones_like(most), where=most > 0)
    return float(np.bincount(batch_of_pair).mean()), float(relative.mean())


def _in_steps(sequence: SampleSequence, step_size: int) -> SampleSequence:
    """The same samples with whole steps in place of micro-batches."""
    edges = np.append(sequence.edges[:-1:step_size], sequence.edges[-1])
    return SampleSequence(samples=sequence.samples, edges=edges)


def _drift(sequence: SampleSequence, sizes: Sequence[Sequence[int]], shares: np.ndarray) -> float:
    """ShuffleQuality.drift, measured after each micro-batch."""
    had = np.cumsum(batch_shares(sequence, sizes), axis=0)
    due = np.arange(1, len(had) + 1)[:, None] * shares
    return float(np.abs(had - due).max())


def _of_epochs(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """ShuffleQuality.displacement, .separation and .retention; samples that are not in both are
    left out."""
    places = np.full(max(first.max(), second.max()) + 1, -1)
    # Backwards, so that of a sample that comes more than once the first place is kept.
    places[second[::-1]] = np.arange(len(second))[::-1]
    later = places[first]
    known = later >= 0
    displacement = np.abs(later / len(second) - np.arange(len(first)) / len(first))[known].mean()
    together = known[1:] & known[:-1]
    separation = np.abs(np.diff(later))[together].mean() / len(second)
    met = np.zeros(len(first), bool)
    for apart in range(1, _REACH + 1):
        one, other = later[:-apart], later[apart:]
        near = (one >= 0) & (other >= 0) & (one != other) & (np.abs(one - other) <= _REACH)
        met[:-apart] |= near
        met[apart:] |= near
    return float(displacement), float(separation), float(met[known].mean())


def lines(qualities: Sequence[ShuffleQuality]) -> list[str]:
    """The figures as a table for people."""
    found = [
        "                     shards in a       entropy     drift,  displac.,  separat.,  retention",
        "             micro-batch        step           micro-batches   epochs    epochs",
    ]
    for one in qualities:
        found.append(
            f"{one.name:11} {one.num_shards:12.1f} {one.step_num_shards:11.1f} {one.entropy:9.3f} "
            f"{one.drift:12.1f} {one.displacement:8.3f} {one.separation:9.3f} {one.retention:9.2%}"
        )
    return found


def draw(path: Path, methods: Sequence[ShuffleMethod], sizes: Sequence[Sequence[int]]) -> None:
    """A PNG, a panel a way: when in the first epoch each shard's samples come.

    Shards are in the order in which that way comes to them, so a fine band is few shards at a time;
    a permutation fills its panel.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(methods), 4), layout="constrained")
    panels = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for panel, way in zip(panels, methods):
        shards = shards_of(way.first.samples, sizes)
        moments = np.linspace(0, 1, len(shards))
        seen = np.bincount(shards)
        means = np.bincount(shards, moments) / np.maximum(seen, 1)
        rank = np.empty(len(means), int)
        rank[np.argsort(means)] = np.arange(len(means))
        some = np.linspace(0, len(shards) - 1, min(len(shards), _NUM_POINTS)).astype(int)
        panel.plot(moments[some], rank[shards[some]], ",", color="tab:blue")
        panel.set(title=way.name, xlabel="place in the epoch", xlim=(0, 1))
    panels[0].set_ylabel("shards, in order of first use")
    with replacing(path) as out:
        figure.savefig(out, format="png", dpi=150)
