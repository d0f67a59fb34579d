"""The kill drill in small: that it comes out clean, and that it sees what would be wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.sharding import kill_drill
from benchmarks.sharding.kill_drill import Counts
from stages.ingest.config import IngestConfig
from stages.ingest.run import ingest

ROOT = Path(__file__).resolve().parents[2]


def test_killed_workers_leave_what_undisturbed_ones_leave() -> None:
    """Real processes, SIGKILL and SIGSTOP at moments of a fixed seed. Oracle: the drill's own
    comparison with an undisturbed run, and its count of what it did."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.sharding.kill_drill",
        "--stage",
        "ingest",
        "--runs",
        "3",
    ]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    last = ended.stdout.strip().splitlines()[-2:]
    assert last[1] == "Every folder came out as undisturbed."
    assert last[0].startswith("runs 3, ") and "differing files 0, left files 0" in last[0]
    kills = re.search(r"kills (\d+)", last[0])
    assert kills and int(kills[1]) > 0


@pytest.mark.parametrize(
    ("damage", "count"),
    [
        ("left", "left_files"),
        ("gone", "missing_files"),
        ("changed", "differing_files"),
    ],
)
def test_the_drill_sees_what_is_wrong(tmp_path: Path, damage: str, count: str) -> None:
    """One file more, one less, one byte another. Oracle: the one count that must rise."""
    config = IngestConfig(num_train=6, num_heldout=2, samples_per_shard=4)
    for name in ("calm", "drilled"):
        ingest(config, seed=0, out=tmp_path / name, show=False)
    tar = tmp_path / "drilled" / "train-000001.tar.json"
    if damage == "left":
        (tmp_path / "drilled" / ".claims").mkdir()
    elif damage == "gone":
        tar.unlink()
    else:
        tar.write_bytes(tar.read_bytes().replace(b"toy", b"tay", 1))
    counts = Counts()
    kill_drill._compare(tmp_path / "drilled", tmp_path / "calm", counts)
    assert getattr(counts, count) == 1 and not counts.is_clean


def test_files_of_workers_elsewhere_may_stay(tmp_path: Path) -> None:
    """Oracle: by hand: their files and the folder that holds them are nothing that is left; a claim
    is, and so is that folder when it is empty."""
    claims = tmp_path / ".claims"
    claims.mkdir()
    assert kill_drill._files(tmp_path) == {".claims"}
    (claims / "worker-1").write_text("")
    assert kill_drill._files(tmp_path) == set()
    (claims / "a.tar.claim").write_text("")
    assert kill_drill._files(tmp_path) == {".claims/a.tar.claim"}
