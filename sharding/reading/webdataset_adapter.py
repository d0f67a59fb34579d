"""The training order as an iterable of webdataset samples, for webdataset's own stages.

    samples = WebdatasetAdapter(stream, start=0, rank=rank, world_size=world_size)
    loader = DataLoader(samples.decode("pil").map(augment).to_tuple("jpg;png", "json"), ...)

Each sample is a dict of "__key__", "__url__" (path or URL of its shard) and the bytes of its
members by extension, as webdataset makes it out of the tar: pictures, json, txt and objects.npy,
which are all that a manifest may list. So webdataset's decoders, which unpickle some extensions,
find none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info
from webdataset.compat import FluidInterface
from webdataset.pipeline import DataPipeline

from sharding.reading.sample_reader import as_bytes
from sharding.reading.shard_reader import RawSample, check_result
from sharding.reading.stream import ShardStream, positions


class WebdatasetAdapter(DataPipeline, FluidInterface):
    """The samples of one rank's positions from `start` on, below `end` if given, else without end.

    Ranks take positions in turn, and a rank's workers take its positions in turn: no sample comes
    twice, whatever their numbers. To resume later, start at the stream's position of its next step.
    Iterating raises ShardError naming shard, key and cause where a sample is damaged.
    """

    def __init__(
        self, stream: ShardStream, *, start: int, rank: int, world_size: int, end: int | None = None
    ) -> None:
        super().__init__(_Dealt(stream, start, rank, world_size, end))


class _Dealt(IterableDataset):
    """The first stage: what webdataset's own would have read from tars."""

    def __init__(
        self, stream: ShardStream, start: int, rank: int, world_size: int, end: int | None
    ) -> None:
        positions(start, rank, world_size, end)  # ValueError here, not in a worker
        self._stream, self._start, self._end = stream, start, end
        self._rank, self._world_size = rank, world_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        # As if each worker were a rank: worker w of W, on rank r of R, is r + w R of R W.
        rank, world_size = self._rank + number * self._world_size, self._world_size * num_workers
        for position in positions(self._start, rank, world_size, self._end):
            for result in self._stream.results(position, _as_dict)[1]:
                yield check_result(result)


def _as_dict(raw: RawSample) -> dict[str, Any]:
    members = {extension: as_bytes(payload) for extension, payload in raw.members.items()}
    return {"__key__": raw.entry.key, "__url__": raw.shard, **members}
