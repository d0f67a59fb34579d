"""Tests of sharding.format.key_digests, and of what writing a shard looks at."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sharding.format.key_digests import KeyDigests
from sharding.format.schema import Sample
from sharding.writing.shard_writer import write_shard


def test_keys_that_come_twice_are_found_where_they_stand() -> None:
    """Oracle: a plain dictionary of places, over shards of random keys, some of them empty."""
    random = np.random.default_rng(0)
    digests, places = KeyDigests[str](), dict[str, list[tuple[str, int]]]()
    for number in range(30):
        keys = [str(key) for key in random.integers(0, 600, random.integers(0, 20))]
        keys = list(dict.fromkeys(keys))
        digests.add(f"{number}.tar", keys)
        for row, key in enumerate(keys):
            places.setdefault(key, []).append((f"{number}.tar", row))
    wanted = [found for found in places.values() if len(found) > 1]
    assert digests.repeated() == wanted and len(wanted) > 20
    assert KeyDigests[str]().repeated() == []


def test_a_shard_is_written_without_a_look_at_its_folder(
    tmp_path: Path, make_sample: Callable[..., Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: nothing lists a folder, which for every shard would take ever longer."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a folder was listed")

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, fail)
    write_shard(tmp_path / "a.tar", [make_sample(0)], fingerprint={"test": "1"})
