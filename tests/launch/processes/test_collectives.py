"""The last collectives of a rank that makes no step. Oracle: those it is known to have made."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from launch.paths import JobPaths
from launch.processes.collectives import flight_recorder_variables, last_collectives
from launch.processes.heartbeat import StallLimit

ROOT = Path(__file__).resolve().parents[3]
RANK = """
    import sys, time
    import torch
    from launch.processes import heartbeat

    heartbeat.STALL_REPORT_SECONDS = 0.4
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    for size in range(1, 8):
        torch.distributed.all_reduce(torch.ones(size))
    heartbeat.Heartbeat(0).beat(3)
    for _ in range(1200):
        time.sleep(0.05)
        if "after step 3" in open(sys.argv[1]).read():
            break
"""


def test_a_rank_without_a_step_writes_its_last_collectives(tmp_path: Path) -> None:
    log = tmp_path / "log"
    env = os.environ | {
        "BOXLESS_HEARTBEAT_FOLDER": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    with log.open("wb") as file:
        command = [sys.executable, "-c", textwrap.dedent(RANK), str(log)]
        subprocess.run(command, env=env, stderr=file, check=True, timeout=300)
    lines = log.read_text().splitlines()
    lines = lines[lines.index("no step after step 3:") + 1 :][:5]
    for line, size in zip(lines, range(3, 8), strict=True):
        assert line.startswith(
            f"collective {size} of default_pg: gloo:all_reduce of [[{size}]], begun"
        )


def test_long_steps_are_no_stalls() -> None:
    """A rank whose steps take minutes would write to its log at each of them. Oracle: limits for
    times that were written down by hand; asked again between steps, as the supervisor does."""
    limit = StallLimit()
    for at, seconds in ((1000, 40), (1010, 40), (1010, 40), (1130, 360), (1140, 360)):
        limit.note(at)
        assert limit.seconds == seconds


def test_a_process_in_no_group_has_none() -> None:
    assert last_collectives() == []


def test_nccl_leaves_its_record_in_the_log_folder(tmp_path: Path) -> None:
    """PyTorch appends the rank to the name."""
    variables = flight_recorder_variables(JobPaths(tmp_path))
    assert variables["TORCH_FR_DUMP_TEMP_FILE"] == f"{tmp_path}/nccl-record-"
