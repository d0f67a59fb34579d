"""catalog.json, a folder's table of contents: which shards, which split, how many samples.

Written when all shards of a folder are done, so its presence means that the folder is complete;
readers open a folder of a thousand shards through it without listing the folder. The shapes of all
samples lie beside it (sharding.format.shapes), written before it and named in it by their SHA-256.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boxless.errors import BoxlessError
from sharding.format import shapes as shapes_files
from sharding.format.key_digests import KeyDigests
from sharding.format.likely_cause import likely_cause
from sharding.format.manifest import (
    Manifest,
    manifest_path,
    parse_manifest,
    read_manifest,
    read_manifest_bytes,
)
from sharding.format.schema import ShardError
from sharding.format.shapes import manifest_shapes, open_shapes, write_shapes
from sharding.writing.atomic import remove_stale, sha256_file, write_json

SCHEMA = "boxless/catalog/1"
KINDS = ("images", "objects")
NAME = "catalog.json"


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One shard: tar (file name), split, size in bytes, SHA-256 of its manifest file, counts."""

    tar: str
    split: str
    bytes: int
    manifest_sha256: str
    num_input: int
    num_ok: int
    num_failed: int


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """All shards of a folder.

    kind: "images" or "objects". shards: by name. metadata: what readers need to know of the whole
    set: label_names, attribute_names and the like. shapes_sha256: of the file with all shapes,
    None in catalogs written before there was one.
    """

    kind: str
    shards: tuple[ShardEntry, ...]
    metadata: dict[str, Any]
    shapes_sha256: str | None = None

    @property
    def num_ok(self) -> int:
        """The samples of all shards."""
        return sum(shard.num_ok for shard in self.shards)

    def of_split(self, split: str) -> tuple[ShardEntry, ...]:
        """The shards of a split, by name; ShardError if there are none."""
        shards = tuple(shard for shard in self.shards if shard.split == split)
        if not shards:
            known = sorted({shard.split for shard in self.shards})
            raise ShardError(f"split: got {split!r}, expected one of {known}")
        return shards

    def tars(self, folder: Path, split: str) -> list[Path]:
        """The tars of a split as paths in `folder`, by name; ShardError if there are none."""
        return [folder / shard.tar for shard in self.of_split(split)]


def write_catalog(
    folder: str | Path, *, kind: str, splits: Mapping[str, str], metadata: Mapping[str, Any]
) -> Catalog:
    """Writes catalog.json over the finished shards {tar name: split} of `folder`.

    Raises ShardError if a shard is not done, or if a key is in two of them. Temporary files that
    killed writers of these shards left are removed. Holds one manifest at a time, and 20 bytes a
    sample for shapes and keys.
    """
    if kind not in KINDS:
        raise ShardError(f"kind: got {kind!r}, expected one of {KINDS}")
    folder = Path(folder)
    shards, shapes, keys = [], [], KeyDigests[str]()
    for tar in sorted(splits):
        shard, manifest = _shard_entry(folder / tar, splits[tar])
        shards.append(shard)
        shapes.append(manifest_shapes(manifest))
        keys.add(tar, (entry.key for entry in manifest.samples))
    _check_keys(folder, keys)
    names = {NAME, shapes_files.NAME}
    names |= {name for tar in splits for name in (tar, manifest_path(Path(tar)).name)}
    remove_stale(folder, names)
    sha256 = write_shapes(folder / shapes_files.NAME, shapes)
    catalog = Catalog(
        kind=kind, shards=tuple(shards), metadata=dict(metadata), shapes_sha256=sha256
    )
    fields = asdict(catalog)
    # The released format has the metadata under "about".
    fields["about"] = fields.pop("metadata")
    write_json(folder / NAME, {"schema": SCHEMA, **fields})
    return catalog


def _check_keys(folder: Path, keys: KeyDigests[str]) -> None:
    """ShardError if a key is in two shards."""
    for (first, _), (second, row), *_ in keys.repeated():
        key = read_manifest(folder / second).samples[row].key
        raise ShardError(
            f"{folder}: got key {key!r} in {first} and in {second}, expected every key once in the "
            "data set; make the source's keys unique (where they start over in each tar of others, "
            "ingest them, by the source webdataset and ingest.prefix_keys_by_tar: true)"
        )


def _shard_entry(tar: Path, split: str) -> tuple[ShardEntry, Manifest]:
    """The catalog's line for a finished shard, and its manifest."""
    data = read_manifest_bytes(tar)
    manifest = parse_manifest(data, tar)
    if not tar.is_file() or tar.stat().st_size != manifest.tar_bytes:
        raise ShardError(
            f"{tar}: got a tar that is missing or of another size than its manifest's "
            f"{manifest.tar_bytes} bytes; run the stage that writes it again"
        )
    entry = ShardEntry(
        tar=tar.name,
        split=split,
        bytes=manifest.tar_bytes,
        manifest_sha256=hashlib.sha256(data).hexdigest(),
        num_input=manifest.num_input,
        num_ok=manifest.num_ok,
        num_failed=manifest.num_failed,
    )
    return entry, manifest


def read_catalog(folder: str | Path) -> Catalog:
    """The catalog of `folder`; ShardError saying what was expected if it is missing or invalid."""
    path = Path(folder) / NAME
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ShardError(
            f"{path}: got no catalog ({error.strerror}), expected a folder of finished shards; "
            "run the stage that writes it to its end"
        ) from error
    return parse_catalog(data, str(path))


def parse_catalog(data: bytes, where: str) -> Catalog:
    """The catalog in a file's bytes; ShardError naming `where` if it is invalid."""
    try:
        raw = json.loads(data)
        if raw["schema"] != SCHEMA or raw["kind"] not in KINDS:
            raise BoxlessError(f"schema {raw['schema']!r}, kind {raw['kind']!r}")
        shards = tuple(ShardEntry(**shard) for shard in raw["shards"])
        for shard in shards:
            _check_entry(shard)
        if len({shard.tar for shard in shards}) != len(shards):
            raise BoxlessError("a shard twice")
        sha256 = raw.get("shapes_sha256")
        if sha256 is not None and len(bytes.fromhex(sha256)) != hashlib.sha256().digest_size:
            raise BoxlessError(f"shapes_sha256 {sha256!r}")
        return Catalog(
            kind=raw["kind"], shards=shards, metadata=dict(raw["about"]), shapes_sha256=sha256
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ShardError(
            f"{where}: got {type(error).__name__}: {error}{likely_cause(data)}, expected a catalog of "
            f"schema {SCHEMA} and kind {' or '.join(KINDS)}; run the stage that writes it again"
        ) from error


def read_shapes(folder: Path, catalog: Catalog) -> np.ndarray | None:
    """Width and height of all samples in the order of the catalog's shards, mapped, [N, 2].

    None where the catalog names no such file; then manifests say it (shapes.manifest_shapes).
    Raises ShardError if the file is missing, damaged, or that of another catalog.
    """
    if catalog.shapes_sha256 is None:
        return None
    return open_shapes(
        folder / shapes_files.NAME, num_samples=catalog.num_ok, sha256=catalog.shapes_sha256
    )


def shapes_of_split(shapes: np.ndarray, catalog: Catalog, split: str) -> np.ndarray:
    """The rows of a split's shards out of those of all shards, [n, 2].

    Shards of a split mostly lie side by side, by their names; then this is a view, else a copy.
    """
    starts = np.cumsum([0, *(shard.num_ok for shard in catalog.shards)])
    inside = [index for index, shard in enumerate(catalog.shards) if shard.split == split]
    if inside and inside[-1] - inside[0] + 1 == len(inside):
        return shapes[starts[inside[0]] : starts[inside[-1] + 1]]
    return np.concatenate(
        [shapes[:0], *(shapes[starts[index] : starts[index + 1]] for index in inside)]
    )


def _check_entry(shard: ShardEntry) -> None:
    """ValueError unless types and counts are valid and the tar's name stays in the folder."""
    texts = (shard.tar, shard.split, shard.manifest_sha256)
    numbers = (shard.bytes, shard.num_input, shard.num_ok, shard.num_failed)
    if not all(isinstance(text, str) for text in texts) or (
        not shard.tar.endswith(".tar") or "/" in shard.tar or not shard.tar.isprintable()
    ):
        raise BoxlessError(f"shard {shard.tar!r} of split {shard.split!r}")
    if not all(type(number) is int and number >= 0 for number in numbers) or (
        shard.num_input != shard.num_ok + shard.num_failed
    ):
        raise BoxlessError(f"counts {numbers} of shard {shard.tar!r}")


def load_manifest(tar: Path, shard: ShardEntry) -> Manifest:
    """The manifest of `tar`; ShardError if it is invalid or not the one that the catalog saw."""
    data = read_manifest_bytes(tar)
    check_manifest(data, shard, str(manifest_path(tar)))
    return parse_manifest(data, tar)


def check_manifest(data: bytes, shard: ShardEntry, where: str) -> None:
    """ShardError naming `where` unless these are the bytes of the manifest that the catalog saw."""
    if (got := hashlib.sha256(data).hexdigest()) != shard.manifest_sha256:
        cause = likely_cause(data) or (
            ": the shard has been written again since; run the stage that writes the folder to its "
            "end, and start again with its new catalog"
        )
        raise ShardError(
            f"{where}: got SHA-256 {got}, expected {shard.manifest_sha256} of {NAME}{cause}"
        )


def catalog_sha256(folder: Path) -> str:
    """SHA-256, in hex, of a folder's catalog.json; it identifies the folder's whole content."""
    return sha256_file(folder / NAME)
