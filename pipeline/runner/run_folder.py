"""The layout of a run folder, and the lock that commands hold while they work in it.

One class owns every path of it. Two locks keep two commands, and the ranks that a killed
orchestrator left, from writing side by side; the kernel drops them when their process ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from boxless.errors import BoxlessError

_WAIT_FOR_RANKS_SECONDS = 60.0


class RunError(BoxlessError):
    """A run folder that cannot be used as asked."""


@dataclass(frozen=True)
class RunFolder:
    """``runs/NAME``: its recipe, the output of each stage, the report and the logs."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe, every value written out."""
        return self.root / "recipe.yaml"

    @property
    def images(self) -> Path:
        """Image shards, of ingest."""
        return self.root / "images"

    @property
    def teacher(self) -> Path:
        """The Faster R-CNN, of teach."""
        return self.root / "teacher"

    @property
    def objects(self) -> Path:
        """Object shards, of distill."""
        return self.root / "objects"

    @property
    def pretrain(self) -> Path:
        """DeepSpeed checkpoints, metrics.jsonl and TensorBoard files."""
        return self.root / "pretrain"

    @property
    def student(self) -> Path:
        """The student in Hugging Face layout, of pretrain."""
        return self.root / "student"

    @property
    def transfer(self) -> Path:
        """One folder a task: scores.json and predictions."""
        return self.root / "transfer"

    @property
    def report(self) -> Path:
        """index.html, one self-contained page."""
        return self.root / "report"

    def logs(self, stage: str) -> Path:
        """Logs of the ranks of a stage."""
        return self.root / "logs" / stage

    def make(self) -> None:
        """Make the folder. RunError where that cannot be."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot make the run folder {self.root}: {error}") from error

    @contextmanager
    def locked_for_command(self, *, wait_for_ranks: bool = True) -> Iterator[None]:
        """Hold the folder as its only orchestrator. RunError when another boxless works in it, or
        ranks of a killed one do not end within a minute (``wait_for_ranks``: false where they
        belong to a job that is followed)."""
        with self._lock("command", fcntl.LOCK_EX) as locked:
            if not locked:
                raise RunError(
                    f"another boxless command is running in {self.root}; wait for it, stop it, or give "
                    "this one a folder of its own with --run DIR."
                )
            if wait_for_ranks:
                self._wait_for_ranks()
            yield

    @contextmanager
    def ranked(self) -> Iterator[None]:
        """Be one of the ranks that work in the folder."""
        with self._lock("ranks", fcntl.LOCK_SH):
            yield

    @contextmanager
    def sole_writer(self, stage: str) -> Iterator[None]:
        """Be the only job that writes the output of ``stage``: its first rank holds this. RunError
        when that of another job does not end within a minute."""
        for attempt in range(int(_WAIT_FOR_RANKS_SECONDS)):
            with self._lock(f"writer-{stage}", fcntl.LOCK_EX) as locked:
                if locked:
                    yield
                    return
            if attempt == 0:
                print(f"Waiting for another {stage} in {self.root} ...", flush=True)
            time.sleep(1.0)
        raise RunError(
            f"another {stage} is running in {self.root}, started by another command or job; wait "
            "for it, end it (`boxless cancel`), or give this one a folder of its own with --run."
        )

    def is_busy(self) -> bool:
        """Whether an orchestrator or ranks are running in it now."""
        with self._lock("command", fcntl.LOCK_EX) as no_command:
            with self._lock("ranks", fcntl.LOCK_EX) as no_ranks:
                return not (no_command and no_ranks)

    def _wait_for_ranks(self) -> None:
        for attempt in range(int(_WAIT_FOR_RANKS_SECONDS)):
            with self._lock("ranks", fcntl.LOCK_EX) as free:
                if free:
                    return
            if attempt == 0:
                print(f"Waiting for ranks of an earlier start in {self.root} ...", flush=True)
            time.sleep(1.0)
        raise RunError(
            f"ranks of an earlier start are still running in {self.root}; "
            "end their processes (python -m pipeline.runner.worker) and run the same command again."
        )

    @contextmanager
    def _lock(self, name: str, kind: int) -> Iterator[bool]:
        """Try to take a lock; yields whether it was had. A file system without locks has none."""
        path = self.root / f".{name}.lock"
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES):
                raise
            yield True  # no process works in a folder that cannot be written
            return
        try:
            try:
                fcntl.flock(handle, kind | fcntl.LOCK_NB)
                locked = True
            except BlockingIOError:
                locked = False
            except OSError:
                locked = True
            yield locked
        finally:
            os.close(handle)
