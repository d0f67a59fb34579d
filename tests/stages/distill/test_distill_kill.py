"""Distill killed with SIGKILL at every moment that matters, and started again.

Run as a script it is the process that gets killed: it forks for every run, so that torch and spaCy
are imported once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from distill_fakes import FakeTeacher, plain_shards, source_of, tree_of, write_images

from stages.detector.ops.resize import Prepared
from stages.distill import run
from stages.distill.config import DistillConfig
from stages.distill.text.phrases import LexiconChunker
from stages.sigterm import exit_at_sigterm

CONFIG = DistillConfig(batch_size=2, phrases="lexicon")
STEP = 4


def test_killed_anywhere_and_started_again_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """Oracle: the folder of a run that nobody killed, compared file by file, names included.

    Moments are counted before and after every batch, fsync and rename; every fourth is tried. The
    second start is killed too, early, and the third ends.
    """
    images, whole = tmp_path / "images", tmp_path / "whole"
    write_images(images, plain_shards())
    run.distill(CONFIG, images=images, object_source=source_of(FakeTeacher()), out=whole)
    subprocess.run(
        [sys.executable, __file__, str(images), str(tmp_path / "killed")],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=600,
    )
    expected = tree_of(whole)
    folders = sorted((tmp_path / "killed").iterdir())
    # 3 shards of 2 or 3 batches, each shard with 4 fsyncs and 2 renames; before and after each.
    assert len(folders) >= 50 // STEP
    for folder in folders:
        assert tree_of(folder) == expected, folder.name


def test_told_to_stop_it_gives_its_shard_back_at_once(tmp_path: Path) -> None:
    """Oracle: SIGTERM while the third picture is with the teacher: the status of a process that
    was asked to stop, no claim and no part of a shard left behind; the next run ends with the same
    bytes."""
    images, whole, out = tmp_path / "images", tmp_path / "whole", tmp_path / "stopped"
    write_images(images, plain_shards())
    run.distill(CONFIG, images=images, object_source=source_of(FakeTeacher()), out=whole)
    stopped = subprocess.run(
        [sys.executable, __file__, str(images), str(out), "stop"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=600,
    )
    assert stopped.returncode == 128 + signal.SIGTERM
    left = [path.name for path in out.rglob("*")]
    # The first shard, of two pictures, may be finished by then.
    tars = [name for name in left if name.endswith(".tar")]
    assert all(f"{tar}.json" in left for tar in tars) and len(tars) <= 1, left
    assert not [name for name in left if name.endswith(".claim")], left
    run.distill(CONFIG, images=images, object_source=source_of(FakeTeacher()), out=out)
    assert tree_of(out) == tree_of(whole)


def dying(function: Callable[..., Any], moments: Any, last: int) -> Callable[..., Any]:
    """`function`, killing its process when the shared count of moments comes to `last`."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        _die_at(last, moments)
        result = function(*args, **kwargs)
        _die_at(last, moments)
        return result

    return wrapped


def _die_at(last: int, moments: Any) -> None:
    if next(moments) == last:
        os.kill(os.getpid(), signal.SIGKILL)


def run_in_fork(images: Path, out: Path, last: int | None) -> int:
    """One run of the stage; the wait status of its process."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    with contextlib.suppress(BaseException):
        teacher = FakeTeacher()
        if last is not None:
            moments = count()
            os.fsync = dying(os.fsync, moments, last)
            os.replace = dying(os.replace, moments, last)
            teacher.detect = dying(teacher.detect, moments, last)  # type: ignore[method-assign]
        run.distill(CONFIG, images=images, object_source=source_of(teacher), out=out)
        os._exit(0)
    os._exit(1)


def main(images: Path, root: Path) -> None:
    """A folder for every fourth moment, until a run ends before its moment comes."""
    chunker = LexiconChunker(FakeTeacher.label_names, FakeTeacher.attribute_names)
    # Most of a run's time is making spaCy's tokenizer; the forks share one.
    run.make_chunker = lambda *args, **kwargs: chunker
    for last in range(0, 10_000, STEP):
        out = root / f"{last:03d}"
        status = run_in_fork(images, out, last)
        if status == 0:
            return
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        again = run_in_fork(images, out, last % 7)
        assert again == 0 or os.WTERMSIG(again) == signal.SIGKILL, again
        assert run_in_fork(images, out, None) == 0


def stop(images: Path, out: Path) -> None:
    """One run, asked to stop while the teacher looks at a picture."""
    exit_at_sigterm()
    teacher, detect = FakeTeacher(), FakeTeacher().detect

    def reported(prepared: list[Prepared]) -> list[np.ndarray]:
        if sum(teacher.batch_sizes) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            # A signal that meets a finalizer comes again a moment later.
            time.sleep(1.0)
        teacher.batch_sizes.append(len(prepared))
        return detect(prepared)

    teacher.detect = reported  # type: ignore[method-assign]
    object_source = source_of(teacher, batch_size=1)
    run.distill(CONFIG, images=images, object_source=object_source, out=out)


if __name__ == "__main__":
    (stop if len(sys.argv) > 3 else main)(Path(sys.argv[1]), Path(sys.argv[2]))
