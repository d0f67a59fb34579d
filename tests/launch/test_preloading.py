"""Ranks that are forks of a process with their modules in it. Oracle: a module that writes down
each import of it, and ranks that write down what they find and end as they are told."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path

import pytest

from launch.backends import torchrun
from launch.config import LaunchConfig
from launch.events import read_events
from launch.job import Job
from launch.preloading import rank

ROOT = Path(__file__).resolve().parents[2]
SLOW_MODULE = """
    import os
    with open(os.environ["IMPORTS"], "a") as file:
        file.write("x")
"""
RANK_SCRIPT = """
    import atexit, os, signal, sys
    from pathlib import Path
    from launch.logs import LOG_FOLDER_VARIABLE, open_log

    here, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    open_log(logs := Path(os.environ[LOG_FOLDER_VARIABLE]), rank)
    assert "slow_module" in sys.modules and __name__ == "__main__"
    first = not (here / f"began-{rank}").exists()
    (here / f"began-{rank}").touch()
    if first and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if first:
        signal.pause()
    atexit.register((here / f"ended-{rank}").touch)
    (here / f"world-{rank}").write_text(os.environ["WORLD_SIZE"])
"""


def make_job(folder: Path) -> Job:
    (folder / "rank_script.py").write_text(textwrap.dedent(RANK_SCRIPT))
    (folder / "slow_module.py").write_text(textwrap.dedent(SLOW_MODULE))
    return Job(
        title="test",
        module="rank_script",
        args=(str(folder),),
        log_folder=folder / "logs",
        env={
            "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
            "IMPORTS": str(folder / "imports"),
            "OMP_NUM_THREADS": "1",
        },
        can_restart=True,
        preload=("no_such_module", "slow_module"),
    )


def test_restarted_ranks_find_their_modules_imported(tmp_path: Path) -> None:
    """Two ranks are started twice, which is counted though they end before they say how far they
    are; the module is imported once."""
    job = make_job(tmp_path)
    config = LaunchConfig(launcher="torchrun", procs_per_node=2, max_restarts=1)
    torchrun.run(job, config)
    assert (tmp_path / "imports").read_text() == "x"
    for number in (0, 1):
        assert (tmp_path / f"world-{number}").read_text() == "2"
        assert (tmp_path / f"ended-{number}").exists()  # functions registered with atexit ran
    kinds = [event["event"] for event in read_events(job.paths.events)]
    assert kinds == ["start", "restart", "end"]


@pytest.mark.parametrize(("code", "status"), [("raise SystemExit(7)", 7), ("os.abort()", 134)])
def test_where_a_fork_cannot_use_a_gpu_the_rank_is_a_process_of_its_own(
    code: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.py").write_text(f"import os, sys; assert sys.argv[1:] == ['a b']; {code}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(sys, "argv", ["rank.py", "one", "a b"])
    monkeypatch.setattr("torch.cuda._is_in_bad_fork", lambda: True)
    monkeypatch.setattr(rank, "set_process_name", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        rank.main()
    assert ended.value.code == status
