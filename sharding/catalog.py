"""catalog.json, a folder's table of contents: which shards, which split, how many samples.

Written when all shards of a folder are done, so its presence means that the folder is complete;
readers open a folder of a thousand shards through it without listing the folder.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sharding.atomic import remove_stale, sha256_file, write_json
from sharding.manifest import (
    Manifest, manifest_path, parse_manifest, read_manifest_bytes
)
from sharding.schema import ShardError

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

    kind: "images" or "objects". shards: by name. about: what readers need to know of the whole
    set: label_names, attribute_names and the like.
    """

    kind: str
    shards: tuple[ShardEntry, ...]
    about: dict[str, Any]

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
    folder: Path, *, kind: str, splits: Mapping[str, str], about: Mapping[str, Any]
) -> Catalog:
    """Writes catalog.json over the finished shards {tar name: split} of `folder`.

    Raises ShardError if a shard is not done, or if a key is in two of them. Temporary files that
    killed writers of these shards left are removed.
    """
    if kind not in KINDS:
        raise ShardError(f"kind: got {kind!r}, expected one of {KINDS}")
    tar_of: dict[str, str] = {}
    shards = []
    for tar in sorted(splits):
        shard, keys = _shard_entry(folder / tar, splits[tar])
        for key in keys:
            if other := tar_of.get(key):
                raise ShardError(
                    f"{folder}: got key {key!r} in {other} and in {tar}, expected every key once "
                    "in the data set; make the source's keys unique"
                )
            tar_of[key] = tar
        shards.append(shard)
    names = {NAME} | {name for tar in splits for name in (tar, manifest_path(Path(tar)).name)}
    remove_stale(folder, names)
    catalog = Catalog(kind=kind, shards=tuple(shards), about=dict(about))
    write_json(folder / NAME, {"schema": SCHEMA, **asdict(catalog)})
    return catalog


def _shard_entry(tar: Path, split: str) -> tuple[ShardEntry, list[str]]:
    """The catalog's line for a finished shard, and the keys of its samples."""
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
    return entry, [sample.key for sample in manifest.samples]


def read_catalog(folder: Path) -> Catalog:
    """The catalog of `folder`; ShardError saying what was expected if it is missing or odd."""
    path = folder / NAME
    try:
        raw = json.loads(path.read_bytes())
        if raw["schema"] != SCHEMA or raw["kind"] not in KINDS:
            raise ValueError(f"schema {raw['schema']!r}, kind {raw['kind']!r}")
        shards = tuple(ShardEntry(**shard) for shard in raw["shards"])
        for shard in shards:
            _check_entry(shard)
        return Catalog(kind=raw["kind"], shards=shards, about=dict(raw["about"]))
    except OSError as error:
        raise ShardError(
            f"{path}: got no catalog ({error.strerror}), expected a folder of finished shards; "
            "run the stage that writes it to its end"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ShardError(
            f"{path}: got {type(error).__name__}: {error}, expected a catalog of schema {SCHEMA} "
            f"and kind {' or '.join(KINDS)}; run the stage that writes it again"
        ) from error


def _check_entry(shard: ShardEntry) -> None:
    """ValueError unless types and counts are sound and the tar's name stays in the folder."""
    texts = (shard.tar, shard.split, shard.manifest_sha256)
    numbers = (shard.bytes, shard.num_input, shard.num_ok, shard.num_failed)
    if not all(isinstance(text, str) for text in texts) or (
        not shard.tar.endswith(".tar") or Path(shard.tar).name != shard.tar
    ):
        raise ValueError(f"shard {shard.tar!r} of split {shard.split!r}")
    if not all(type(number) is int and number >= 0 for number in numbers) or (
        shard.num_input != shard.num_ok + shard.num_failed
    ):
        raise ValueError(f"counts {numbers} of shard {shard.tar!r}")


def load_manifest(tar: Path, shard: ShardEntry) -> Manifest:
    """The manifest of `tar`; ShardError if it is odd or not the one that the catalog saw."""
    path = manifest_path(tar)
    data = read_manifest_bytes(tar)
    if (got := hashlib.sha256(data).hexdigest()) != shard.manifest_sha256:
        raise ShardError(
            f"{path}: got SHA-256 {got}, expected {shard.manifest_sha256} of {NAME}: the shard "
            "has been written again since; run the stage that writes the folder to its end"
        )
    return parse_manifest(data, tar)


def catalog_sha256(folder: Path) -> str:
    """SHA-256, in hex, of a folder's catalog.json; it stands for the folder's whole content."""
    return sha256_file(folder / NAME)
