"""A set of shards to train on: its location, catalog and shapes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sharding.format import catalog as catalogs
from sharding.format import shapes as shapes_files
from sharding.format.catalog import Catalog, ShardEntry, parse_catalog, read_shapes, shapes_of_split
from sharding.format.schema import ShardError
from sharding.format.shapes import manifest_shapes, parse_shapes
from sharding.reading.cache import Cache
from sharding.reading.local_store import LocalStore
from sharding.reading.remote_store import RemoteStore, open_store
from sharding.reading.shard_reader import ShardReader
from sharding.reading.store import Store
from sharding.reading.watchdog import StatusBoard


@dataclass(frozen=True)
class DatasetSource:
    """A set of shards: a folder or URL, a split of its catalog, and its weight among others.

    weight: its micro-batches in each cycle of as many as all weights together. Either all sources
    of a stream have one, or none has: then they are mixed as one set.
    """

    folder: str | Path
    split: str = "train"
    weight: int | None = None

    def __post_init__(self) -> None:
        is_whole = isinstance(self.weight, (int, np.integer)) and not isinstance(self.weight, bool)
        if self.weight is not None and not (is_whole and self.weight >= 1):
            raise ShardError(
                f"weight: got {self.weight!r}, expected a whole number of at least 1, or None"
            )


@dataclass(frozen=True)
class OpenSource:
    """A source with its store, the catalog's entries of its split, and all its samples' shapes:
    width and height in pixels [N, 2], shard after shard. metadata: the catalog's, of the whole set.
    """

    source: DatasetSource
    store: Store
    entries: tuple[ShardEntry, ...]
    shapes: np.ndarray
    metadata: dict[str, Any]

    @property
    def content(self) -> list[object]:
        """What the order of samples depends on, not its location: all bytes of the split."""
        shards = [[entry.tar, entry.manifest_sha256] for entry in self.entries]
        return [self.source.split, self.source.weight, shards]


def open_source(source: DatasetSource, cache: Cache | None) -> OpenSource:
    """Reads catalog and shapes; ShardError if the folder is unfinished or has no such split."""
    store = open_store(source.folder, cache=cache)
    catalog = _read_catalog(store)
    entries = catalog.of_split(source.split)
    shapes = _read_shapes(store, catalog)
    if shapes is None:
        shapes = _shapes_by_manifests(store, entries)
    else:
        shapes = shapes_of_split(shapes, catalog, source.split)
    return OpenSource(source, store, entries, shapes, catalog.metadata)


def _read_catalog(store: Store) -> Catalog:
    try:
        data = store.read_file(catalogs.NAME)
    except ShardError as error:
        if isinstance(store, RemoteStore) and not isinstance(error.__cause__, FileNotFoundError):
            raise  # nothing is known of the folder
        raise ShardError(
            f"{error}, expected the catalog of a folder of finished shards; run the stage that "
            "writes it to its end"
        ) from error
    return parse_catalog(data, f"{store.where}/{catalogs.NAME}")


def _read_shapes(store: Store, catalog: Catalog) -> np.ndarray | None:
    """Those of all splits; None where the catalog is older than the file with them."""
    if isinstance(store, LocalStore):
        return read_shapes(Path(store.where), catalog)
    if catalog.shapes_sha256 is None:
        return None
    return parse_shapes(
        store.read_file(shapes_files.NAME),
        num_samples=catalog.num_ok,
        sha256=catalog.shapes_sha256,
        where=f"{store.where}/{shapes_files.NAME}",
    )


def _shapes_by_manifests(store: Store, entries: tuple[ShardEntry, ...]) -> np.ndarray:
    shards = ShardReader(
        [(store, entry) for entry in entries], num_manifests=1, board=StatusBoard()
    )
    return np.concatenate(
        [manifest_shapes(shards.manifest(number)) for number in range(len(entries))]
    )
