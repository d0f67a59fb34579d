"""Small corpora made by hand, for the tests of ingest."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sharding.format.catalog import Catalog
from sharding.format.manifest import Manifest, read_manifest
from sharding.format.schema import Sample
from sharding.reading.sample_reader import iterate


def encoded(
    form: str = "JPEG", *, width: int = 40, height: int = 30, mode: str = "RGB", seed: int = 0
) -> bytes:
    """A picture of noise as the bytes of a file."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(out, form)
    return out.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check_sum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check_sum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


def write_json(path: Path, content: Any) -> str:
    """Write JSON; returns the path as a recipe has it."""
    path.write_text(json.dumps(content))
    return str(path)


def captions_of(pictures: dict[str, list[str]]) -> dict[str, list[dict[str, Any]]]:
    """The content of a captions file: {file name: captions}, ids from 1 in that order."""
    return {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(pictures, start=1)],
        "annotations": [
            {"id": 100 * i + j, "image_id": i, "caption": caption}
            for i, captions in enumerate(pictures.values(), start=1)
            for j, caption in enumerate(captions)
        ],
    }


def manifests(folder: Path, catalog: Catalog) -> list[Manifest]:
    """All manifests of a catalog, each with its counts checked."""
    found = [read_manifest(folder / shard.tar) for shard in catalog.shards]
    for manifest, shard in zip(found, catalog.shards):
        assert manifest.num_input == manifest.num_ok + manifest.num_failed == shard.num_input
    return found


def samples(folder: Path, catalog: Catalog) -> dict[str, Sample]:
    """Every sample of a catalog, by key."""
    return {s.key: s for shard in catalog.shards for s in iterate(folder / shard.tar)}


def reasons(folder: Path, catalog: Catalog) -> dict[str, list[str]]:
    """{key: reasons} of all failed inputs."""
    found: dict[str, list[str]] = {}
    for manifest in manifests(folder, catalog):
        for failure in manifest.failures:
            found.setdefault(failure.key, []).append(failure.reason)
    return found


def notes(folder: Path, catalog: Catalog) -> list[tuple[str, str]]:
    """(key, reason) of everything that was dropped from kept samples."""
    return [(n.key, n.reason) for manifest in manifests(folder, catalog) for n in manifest.notes]
