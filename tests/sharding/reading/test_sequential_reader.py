"""Tests of sharding.reading.sequential_reader: the bytes of the file, by any reads that go forward,
and its hash."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from sharding.reading import sequential_reader as forward
from sharding.reading.sample_reader import OpenTar
from sharding.reading.sequential_reader import SequentialReader


@pytest.mark.parametrize("seed", range(20))
def test_reads_are_slices_and_the_hash_is_of_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Oracle: slices of the file's bytes; reads overlap, leave out and are longer than a piece."""
    monkeypatch.setattr(forward, "PIECE_BYTES", 100)
    rng = random.Random(seed)
    data = rng.randbytes(rng.randrange(5000))
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    source = SequentialReader(OpenTar(path))
    offset = 0
    for _ in range(rng.randrange(40)):
        offset = min(len(data), offset + rng.choice([0, 0, 7, 90, 450]))
        num_bytes = min(len(data) - offset, rng.choice([0, 5, 100, 130, 700]))
        assert source.read(offset, num_bytes) == data[offset : offset + num_bytes]
    assert source.sha256() == hashlib.sha256(data).hexdigest()


def test_going_back_is_a_mistake(tmp_path: Path) -> None:
    """Oracle: what was let go cannot be had again, and nothing lies behind the end."""
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(3 << 20))
    source = SequentialReader(OpenTar(path))
    source.read(2 << 20, 9)
    for offset, num_bytes in ((5, 1), (3 << 20, 1)):
        with pytest.raises(AssertionError):
            source.read(offset, num_bytes)
