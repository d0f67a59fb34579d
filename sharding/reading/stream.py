"""The training data as a map-style dataset of micro-batches, for PyTorch's DataLoader.

Use:

    stream = ShardStream([DatasetSource("objects")], seed=0, micro_batch_size=32,
                    window_num_shards=8, shape_step_px=64)
    order = positions(start, rank, world_size)
    loader = DataLoader(stream, batch_size=None, sampler=order, num_workers=4, collate_fn=collate)

Each item is a list of samples, still encoded; collate_fn runs in the workers and decodes them. The
state to save is `stream.state(position)`, of the position of the next step, and nothing else; it is
good for any later number of ranks and workers, and `stream.position(state)` refuses it where shards
or settings are others. Stages of stock webdataset continue from here in
sharding.reading.webdataset_adapter.
"""

from __future__ import annotations

import hashlib
import itertools
import operator
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess
from multiprocessing.util import get_temp_dir
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import Dataset, get_worker_info

from boxless.errors import BoxlessError
from sharding.format.resize import Resize
from sharding.format.schema import Sample, ShardError
from sharding.order.mixture import Mixture
from sharding.order.order import MicroBatch, Order, Plan
from sharding.order.visits import VisitOrder
from sharding.reading.cache import Cache
from sharding.reading.dataset_source import DatasetSource, OpenSource, open_source
from sharding.reading.sample_reader import make_sample
from sharding.reading.shard_reader import RawSample, ShardReader, check_result
from sharding.reading.watchdog import StatusBoard
from sharding.tools.verify import Fault
from sharding.writing.atomic import sha256_of

T = TypeVar("T")
# How soon a worker notices that the process which started it is gone.
_ORPHAN_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What came of a position: its epoch, the samples that are valid, and what is wrong with the
    others, which are left out."""

    position: int
    epoch: int
    samples: list[Sample]
    faults: tuple[Fault, ...]


class ShardStream(Dataset[list[Sample]]):
    """Shards in training order, a map-style dataset: stream[position] is the list of samples of
    micro-batch `position`, each checked by its CRC-32.

    sources: folders of finished shards, see DatasetSource.
    seed, micro_batch_size, window_num_shards, shape_step_px, resize: of the order, see
        sharding.order.order.
    cache_bytes: disk that a rank and its workers use, in all, for what lies behind URLs; it is for
        sets that are gone through several times by few ranks. 0 for none.
    board: where the workers say what they do; see sharding.reading.watchdog.
    num_visits: how often each sample of each source comes an epoch, [N] a source; None for once.
    waits_for_store: wait, with a warning, while a store does not answer, instead of a fault.

    `plan` is the Order, or the Mixture of several. Opening reads catalogs and shapes; manifests and
    tars are opened when first needed, in the process that needs them. Raises ShardError naming
    shard, key and cause for what is missing, replaced since its catalog was written, cut or
    damaged. Workers end by themselves when the process that started them is killed.
    """

    def __init__(
        self,
        sources: Sequence[DatasetSource],
        *,
        seed: int,
        micro_batch_size: int,
        window_num_shards: int,
        shape_step_px: int,
        resize: Resize | None = None,
        cache_bytes: int = 1 << 30,
        board: StatusBoard | None = None,
        num_visits: Sequence[np.ndarray] | None = None,
        waits_for_store: bool = False,
    ) -> None:
        settings = {
            "seed": _whole("seed", seed),
            "micro_batch_size": _whole("micro_batch_size", micro_batch_size),
            "window_num_shards": _whole("window_num_shards", window_num_shards),
            "shape_step_px": _whole("shape_step_px", shape_step_px),
        }
        if not (isinstance(sources, (list, tuple)) and sources) or any(
            not isinstance(source, DatasetSource) for source in sources
        ):
            raise BoxlessError(
                f"sources: got {sources!r}, expected a list of them, as [DatasetSource('objects')]"
            )
        self.board = StatusBoard() if board is None else board
        is_far = any("://" in str(source.folder) for source in sources)
        cache = Cache(cache_bytes) if cache_bytes and is_far else None
        opened = [open_source(source, cache) for source in sources]
        self.plan, self._first_shards = _make_plan(opened, settings, resize, num_visits)
        self._shards = ShardReader(
            [(one.store, entry) for one in opened for entry in one.entries],
            num_manifests=2 * window_num_shards * len(opened),
            board=self.board,
            waits_for_store=waits_for_store,
        )
        # Without `resize` the digest is that of versions which had none.
        given: dict[str, object] = {**settings, **({"resize": asdict(resize)} if resize else {})}
        if num_visits is not None:
            given["num_visits"] = [_digest(visits) for visits in num_visits]
        order = [given, [one.content for one in opened]]
        # Sources of one seed were in step with each other once; their order is another now.
        is_mixture = isinstance(self.plan, Mixture) and len(opened) > 1
        self._order_sha256 = sha256_of([*order, "seed of each source"] if is_mixture else order)
        self._guarded_process = os.getpid()

    @property
    def num_micro_batches(self) -> int:
        """Positions after which the plan repeats: an epoch, or a cycle of weighted sources."""
        return self.plan.num_micro_batches

    def __len__(self) -> int:
        """`num_micro_batches`."""
        return self.num_micro_batches

    def __iter__(self) -> Iterator[list[Sample]]:
        """The micro-batches of the first epoch, or cycle of weighted sources."""
        return (self[position] for position in range(len(self)))

    def __getitem__(self, position: int) -> list[Sample]:
        """The samples at `position`; ShardError on damage, IndexError below 0."""
        return [check_result(result) for result in self.results(position, _as_sample)[1]]

    def read(self, position: int) -> Reading:
        """The valid samples at `position` and the faults of the others; IndexError below 0."""
        micro_batch, results = self.results(position, _as_sample)
        return Reading(
            position=position,
            epoch=micro_batch.epoch,
            samples=[result for result in results if not isinstance(result, Fault)],
            faults=tuple(result for result in results if isinstance(result, Fault)),
        )

    def results(
        self, position: int, make: Callable[[RawSample], T]
    ) -> tuple[MicroBatch, list[T | Fault]]:
        """The micro-batch at `position`, and what `make` gives for each of its samples, or its
        fault."""
        position = _whole("position", position)
        self._leave_with_parent()
        self.board.begin(position)
        micro_batch = self.plan[position]
        first = self._first_shards[micro_batch.source]
        places = [(first + shard, sample) for shard, sample in micro_batch.samples]
        results = self._shards.read(places, make)
        self.board.set_idle()
        return micro_batch, results

    def state(self, position: int) -> dict[str, int | str]:
        """What to save in a checkpoint, `position` being that of the next step."""
        return {"position": position, "order": self._order_sha256}

    def has_order_of(self, state: Mapping[str, int | str]) -> bool:
        """Whether a saved state is one of this very order."""
        return state.get("order") == self._order_sha256

    def position(self, state: Mapping[str, int | str]) -> int:
        """The position of a saved state; ShardError where it is not one of this very order."""
        position = state.get("position")
        if type(position) is not int or position < 0:
            raise ShardError(f"state: got {dict(state)}, expected what ShardStream.state gave")
        if not self.has_order_of(state):
            raise ShardError(
                f"state: got position {position} of order {state.get('order')}, expected one of "
                f"{self._order_sha256}: shards, splits, weights, seed, micro_batch_size, "
                "window_num_shards, shape_step_px, resize or visits are others than when it was "
                "saved; continue with those, or begin at position 0"
            )
        return position

    def _leave_with_parent(self) -> None:
        """In a DataLoader's worker: a thread that ends it when the process that started it dies.

        PyTorch's own watch does not help a worker that waits for the store, or for room in a pipe
        that its siblings hold open.
        """
        if self._guarded_process == os.getpid() or get_worker_info() is None:
            return
        self._guarded_process = os.getpid()
        parent = parent_process()
        assert parent is not None, "a worker has a parent"
        threading.Thread(target=_end_without, args=(parent,), daemon=True).start()


def _whole(name: str, value: object) -> int:
    """A whole number of Python, numpy or PyTorch as Python's."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise BoxlessError(f"{name}: got {value!r}, expected a whole number") from None


def _make_plan(
    sources: Sequence[OpenSource],
    settings: Mapping[str, int],
    resize: Resize | None,
    num_visits: Sequence[np.ndarray] | None,
) -> tuple[Plan, list[int]]:
    """The plan, and for each set of it the number of its first shard among those of all sources."""
    weights = [one.source.weight for one in sources if one.source.weight is not None]
    if not weights:
        shapes = [one.shapes for one in sources]
        sizes = [entry.num_ok for one in sources for entry in one.entries]
        # One source's shapes may be a memory map, which stays one.
        every = shapes[0] if len(shapes) == 1 else np.concatenate(shapes)
        visits = None if num_visits is None else np.concatenate(num_visits)
        return _make_order(every, sizes, visits, resize=resize, **settings), [0]
    if len(weights) != len(sources):
        raise ShardError(
            f"sources: got {len(weights)} of {len(sources)} with a weight, expected all or none"
        )
    orders = [
        _make_order(
            one.shapes,
            [entry.num_ok for entry in one.entries],
            None if num_visits is None else num_visits[number],
            resize=resize,
            **{**settings, "seed": _seed_of(settings["seed"], number)},
        )
        for number, one in enumerate(sources)
    ]
    first = [0, *itertools.accumulate(len(one.entries) for one in sources)]
    return Mixture(orders, weights, settings["seed"]), first[:-1]


def _make_order(
    shapes: np.ndarray, sizes: Sequence[int], num_visits: np.ndarray | None, **settings: Any
) -> Plan:
    if num_visits is None:
        return Order(shapes, sizes, **settings)
    return VisitOrder(shapes, sizes, num_visits, **settings)


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, np.int64).tobytes()).hexdigest()


def _seed_of(seed: int, source: int) -> int:
    """A seed for each source: with one for all, sources of equal size would be in step. The first
    has the run's own."""
    return int(sha256_of([seed, source])[:16], 16) if source else seed


def _as_sample(raw: RawSample) -> Sample:
    return make_sample(raw.members, raw.entry)


def _end_without(parent: BaseProcess) -> None:
    # A worker of a fork server is the server's child, and of those that are forked each holds its
    # older siblings' pipe to the parent open, which is_alive() looks at.
    is_child = os.getppid() == parent.pid
    while os.getppid() == parent.pid if is_child else parent.is_alive():
        time.sleep(_ORPHAN_SECONDS)
    # Tensors are handed over through a socket in a folder that only an orderly exit removes.
    shutil.rmtree(get_temp_dir(), ignore_errors=True)
    os._exit(1)


def positions(start: int, rank: int, world_size: int, end: int | None = None) -> Iterator[int]:
    """The positions of one rank: start + rank, then every world_size-th, below `end` if given.

    Without an end it never ends. Ranks take equally many when world_size divides end - start;
    sharding.order.turns.turns deals in equal numbers always.
    Raises ValueError unless 0 <= rank < world_size and start >= 0.
    """
    if start < 0 or not 0 <= rank < world_size:
        raise BoxlessError(
            f"start, rank, world_size: got {start}, {rank}, {world_size}, "
            "expected start >= 0 and 0 <= rank < world_size"
        )
    if end is None:
        return itertools.count(start + rank, world_size)
    return iter(range(start + rank, end, world_size))
