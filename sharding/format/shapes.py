"""catalog.shapes.npy: width and height of every sample of a folder, beside its catalog.json.

The order of training samples (sharding.order.order) needs every picture's shape; with this file a
reader of a folder of thousands of shards maps one file instead of opening thousands of manifests.
It holds one array [N, 2] in numpy's own format, uint16 (uint32 where a side is larger): the samples
in the order of the catalog's shards and, within a shard, of its manifest.

Written by sharding.format.catalog just before catalog.json, which names its SHA-256. So a file left
from another catalog, or separated from its own by a kill, is never taken for the right one. The
SHA-256 is checked whenever the file is opened: 10 ms for the 17 MB of 4.2 M samples, and always
less than the counting that the order does with the shapes next.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sharding.format.manifest import Manifest
from sharding.format.schema import ShardError
from sharding.writing.atomic import replacing

NAME = "catalog.shapes.npy"
_HEADER_BYTES = 128
_DTYPES = ("<u2", "<u4")


def manifest_shapes(manifest: Manifest) -> np.ndarray:
    """Width and height in pixels of a shard's samples, [n, 2], uint16 or, where needed, uint32.

    Raises ShardError for sides of 2^32 pixels and more.
    """
    try:
        shapes = np.array(
            [(entry.width, entry.height) for entry in manifest.samples], np.uint32
        ).reshape(-1, 2)
    except OverflowError as error:
        raise ShardError(
            f"{manifest.tar}: got a picture with a side of 2^32 pixels or more in its manifest"
        ) from error
    return shapes if shapes.max(initial=0) > np.iinfo(np.uint16).max else shapes.astype(np.uint16)


def write_shapes(path: Path, pieces: Sequence[np.ndarray]) -> str:
    """Writes arrays [n, 2] one after the other, whole or not at all; returns the file's SHA-256."""
    dtype = np.result_type(np.uint16, *pieces).newbyteorder("<")
    header = _header(dtype.str, sum(map(len, pieces)))
    digest = hashlib.sha256(header)
    with replacing(path) as out:
        out.write(header)
        for piece in pieces:
            data = piece.astype(dtype).tobytes()
            digest.update(data)
            out.write(data)
    return digest.hexdigest()


def open_shapes(path: Path, *, num_samples: int, sha256: str) -> np.ndarray:
    """The shapes in a file, mapped, [num_samples, 2]; ShardError as parse_shapes, or if missing.

    Processes that open the same file share its memory.
    """
    try:
        with open(path, "rb") as source:
            mapped = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
    # ValueError: mmap refuses an empty file.
    except (OSError, ValueError) as error:
        raise ShardError(
            f"{path}: got {error}, expected the shapes of {num_samples} samples; restore the "
            "file or have the folder's catalog written again"
        ) from error
    return parse_shapes(mapped, num_samples=num_samples, sha256=sha256, where=str(path))


def parse_shapes(
    data: bytes | mmap.mmap, *, num_samples: int, sha256: str, where: str
) -> np.ndarray:
    """The shapes in a file's bytes, uncopied and read-only, [num_samples, 2].

    Nothing in the header is parsed: it must be the one that write_shapes writes for so many
    samples. Raises ShardError naming `where` unless size, header and SHA-256 are as expected.
    """
    for dtype in _DTYPES:
        header = _header(dtype, num_samples)
        num_bytes = len(header) + 2 * num_samples * np.dtype(dtype).itemsize
        if len(data) == num_bytes and data[: len(header)] == header:
            break
    else:
        raise ShardError(
            f"{where}: got {len(data)} bytes that begin with {data[:_HEADER_BYTES]!r}, expected "
            f"{num_samples} widths and heights as {' or '.join(_DTYPES)}; have the folder's "
            "catalog written again"
        )
    if (got := hashlib.sha256(data).hexdigest()) != sha256:
        raise ShardError(
            f"{where}: got SHA-256 {got}, expected {sha256} of catalog.json: damaged, or of "
            "another catalog; have the folder's catalog written again"
        )
    return np.frombuffer(data, dtype, offset=len(header)).reshape(num_samples, 2)


def _header(dtype: str, num_samples: int) -> bytes:
    """The header of numpy's format 1.0, spelled here so that no release of numpy changes it."""
    described = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({num_samples}, 2), }}"
    length = _HEADER_BYTES - 10
    return (
        b"\x93NUMPY\x01\x00"
        + length.to_bytes(2, "little")
        + (described.ljust(length - 1).encode() + b"\n")
    )
