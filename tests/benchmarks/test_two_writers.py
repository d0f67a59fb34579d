"""The drill of two writers in small: that it comes out clean, and that it sees what would be
wrong."""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks.sharding import two_writers
from benchmarks.sharding.two_writers import TAR, Counts, play_round
from sharding.writing.shard_writer import write_shard


def test_two_writers_whose_clocks_differ_by_minutes_leave_one_sound_shard(tmp_path: Path) -> None:
    """Oracle: every byte of the shard against its manifest, whoever wrote it; both end well."""
    counts, moments = Counts(), random.Random(3)
    for number in range(3):
        play_round(tmp_path / str(number), moments, counts)
    assert counts.rounds == 3 and counts.stops >= 3 and counts.num_wrong == 0


def test_the_drill_sees_a_tar_beside_another_writers_manifest(tmp_path: Path) -> None:
    """Oracle: the tar of one writer, of the same size, put beside the manifest of the other."""
    counts = Counts()
    two_writers.judge(tmp_path, counts)
    assert counts.unfinished == 1
    for name in (b"a", b"b"):
        sample = two_writers.Sample(
            key="k", image=name * 9, extension="png", info={"captions": [], "width": 1, "height": 1}
        )
        write_shard(tmp_path / name.decode() / TAR, [sample], fingerprint=two_writers.FINGERPRINT)
    two_writers.judge(tmp_path / "a", counts)
    assert counts.num_wrong == 1
    (tmp_path / "b" / TAR).replace(tmp_path / "a" / TAR)
    two_writers.judge(tmp_path / "a", counts)
    assert counts.invalid == 1
