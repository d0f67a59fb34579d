"""Loads batches by position, with worker processes that read ahead.

A turn (`sharding.order`) is a position in the order of all micro-batches. A source gives the same
batch for a position on any rank, in any process, at any time: that is what makes a run that was
stopped continue exactly as if it had not been.
"""

from __future__ import annotations

import ctypes
import errno
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.reduction import ForkingPickler
from multiprocessing.util import Finalize
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from boxless.errors import BoxlessError
from sharding.order.turns import Turn, turns
from sharding.reading.watchdog import StatusBoard
from sharding.tools.verify import Fault
from stages.training.config import TrainingConfig

LONGEST_TMPDIR = 107 - len("/pymp-12345678/listener-12345678")
_ENDING_SECONDS = 1.0  # from a broken connection to the end of a killed process
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Batch(Protocol):
    """A micro-batch. `keys` name its samples in errors."""

    @property
    def keys(self) -> Sequence[str]:
        """Of its samples."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""

    def map_tensors(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """The batch of what `function` gives for each of its tensors."""


@dataclass(frozen=True, kw_only=True)
class LoadedBatch:
    """What a turn brought: its batch, None if no sample of it could be read, and what could not."""

    turn: Turn
    batch: Any
    faults: tuple[Fault, ...] = ()


class BatchSource(Protocol):
    """What a run trains on."""

    board: StatusBoard
    """Where the reading process reports what it does."""

    def __getitem__(self, turn: Turn) -> LoadedBatch:
        """The turn's batch. Called in worker processes, in any order."""

    def state(self, position: int) -> Mapping[str, Any]:
        """What to save in a checkpoint, `position` being that of the next step."""

    def position(self, state: Mapping[str, Any]) -> int:
        """The position of a saved state. Raises ValueError where that is of another order."""

    def epochs(self, position: int) -> float:
        """How often the samples (of the first set) have been gone through before `position`."""


class ExampleBatches:
    """A source of batches of numbered examples: each once an epoch, in an order of the seed's.

    make: numbers of examples -> their batch. The last batch of an epoch may be smaller. Raises
    ValueError without examples.
    """

    def __init__(
        self,
        num_examples: int,
        make: Callable[[Sequence[int]], Batch],
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        if num_examples < 1:
            raise BoxlessError(f"num_examples: got {num_examples}, expected at least 1")
        self.board = StatusBoard()
        self._num_examples, self._make = num_examples, make
        self._batch_size, self._seed = batch_size, seed
        self._num_batches = -(-num_examples // batch_size)

    def rows(self, position: int) -> list[int]:
        """The examples of a position."""
        epoch, place = divmod(position, self._num_batches)
        order = np.random.default_rng([self._seed, epoch]).permutation(self._num_examples)
        return order[place * self._batch_size : (place + 1) * self._batch_size].tolist()

    def __getitem__(self, turn: Turn) -> LoadedBatch:
        """The batch of the examples at the turn's position."""
        return LoadedBatch(turn=turn, batch=self._make(self.rows(turn.position)))

    def state(self, position: int) -> dict[str, int]:
        """Position, and all that the order depends on."""
        return {
            "position": position,
            "num_examples": self._num_examples,
            "batch_size": self._batch_size,
            "seed": self._seed,
        }

    def position(self, state: Mapping[str, Any]) -> int:
        """The position of a saved state; ValueError where examples, batch or seed are others."""
        position = int(state["position"])
        if dict(state) != self.state(position):
            raise BoxlessError(
                f"got a checkpoint of the order {dict(state)}, expected {self.state(position)}; go "
                "on with the settings and examples that it was made with, or start over"
            )
        return position

    def epochs(self, position: int) -> float:
        """How often the examples have been gone through before `position`."""
        return position / self._num_batches


def load_batches(
    source: BatchSource, config: TrainingConfig, start: int, rank: int, world_size: int
) -> DataLoader[LoadedBatch]:
    """This rank's turns from position `start` to the end of the run, in order; read them with
    `received`.

    Raises ValueError where PyTorch's workers could not hand a tensor over: they would drop it
    silently, and the rank would wait forever.
    """
    if config.num_workers and len(tempfile.gettempdir()) > LONGEST_TMPDIR:
        raise BoxlessError(
            f"TMPDIR: got {tempfile.gettempdir()}, expected at most {LONGEST_TMPDIR} letters, "
            "as PyTorch's workers hand tensors over through a socket in it, whose path may not "
            f"be longer; set TMPDIR to another folder, or {config.section}.num_workers=0"
        )
    end = config.num_steps * config.micro_batches_per_step
    dataset: Dataset[Any] = _Packed(source) if config.num_workers else _Plain(source)
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=_Turns(start, rank, world_size, config.micro_batches_per_step, end),
        num_workers=config.num_workers,
        worker_init_fn=_start_worker if config.num_workers else None,
    )


def received(loader: DataLoader[Any], section: str) -> Iterator[LoadedBatch]:
    """The loader's batches.

    Raises BoxlessError, naming the limit and what to do, where workers cannot be started or one
    could not hand a batch over, and a worker's own BoxlessError, OSError or MemoryError as it is.
    The workers end with the iterator, whatever they are at.
    """
    try:
        batches = iter(loader)
    except OSError as error:
        if not loader.num_workers:
            raise
        raise BoxlessError(
            f"{section}.num_workers: workers could not be started: {_limit(error) or error}. Expected "
            "a /dev/shm that can be written, for their locks and batches, and room for processes "
            "(`ulimit -u`): give the container those, or read in the rank itself with "
            f"{section}.num_workers=0"
        ) from error
    # Also where the process ends while a traceback still holds the iterator: multiprocessing would
    # wait without end then for workers that ignore SIGTERM. Before their queues end (priority 10).
    ending = Finalize(None, _end_workers, args=(batches,), exitpriority=20)
    try:
        with named_killed_workers(section):
            yield from _handed_over(loader, batches, section)
    finally:
        ending()


def _handed_over(loader: DataLoader[Any], batches: Any, section: str) -> Iterator[LoadedBatch]:
    while True:
        try:
            item = next(batches)
            if isinstance(item, bytes):
                item = ForkingPickler.loads(item)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            if not loader.num_workers or _is_of_killed_worker(error):
                raise
            if _was_killed(batches):
                raise BoxlessError(_killed(section)) from error
            reason = _limit(error)
            if reason is None:
                raise
            raise BoxlessError(_cannot_hand_over(reason, section)) from error
        if isinstance(item, _NotHandedOver):
            raise BoxlessError(_cannot_hand_over(item.reason, section))
        if isinstance(item, _Raised):
            raise item.error
        yield item


def _end_workers(batches: Any) -> None:
    """In order where they can, by SIGKILL where they do not come to an end: workers ignore SIGTERM
    and may wait for a store that does not answer."""
    if not hasattr(batches, "_workers"):
        return  # the loader reads in this process
    with suppress(RuntimeError):  # PyTorch's, of a worker that was killed
        batches._shutdown_workers()
    for worker in batches._workers:
        worker.kill()


@dataclass(frozen=True)
class _NotHandedOver:
    """Why a worker kept a batch."""

    reason: str


@dataclass(frozen=True)
class _Raised:
    """What the source raised for the user, or of the machine's limits; from DataLoader it would
    come as a traceback's text, without the number that says what it is."""

    error: BoxlessError | OSError | MemoryError


class _Plain(Dataset[LoadedBatch]):
    """The source as PyTorch's kind of data set."""

    def __init__(self, source: BatchSource) -> None:
        self._source = source

    def __getitem__(self, turn: Turn) -> LoadedBatch:
        return self._source[turn]


class _Packed(Dataset[bytes]):
    """The source in a worker, each batch moved to shared memory here, where an error is seen.

    DataLoader leaves that to a thread of its queue, which drops what it cannot move.
    """

    def __init__(self, source: BatchSource) -> None:
        self._source = source

    def __getitem__(self, turn: Turn) -> bytes:
        try:
            batch = self._source[turn]
        except (BoxlessError, OSError, MemoryError) as error:
            if isinstance(error, OSError) and error.errno is None:
                raise
            if isinstance(error, OSError):  # some kinds of it cannot be pickled
                error = OSError(error.errno, error.strerror, error.filename)
            return bytes(ForkingPickler.dumps(_Raised(error)))
        try:
            return bytes(ForkingPickler.dumps(batch))
        except (RuntimeError, OSError) as error:
            reason = _limit(error) or f"{type(error).__name__}: {error}"
            return bytes(ForkingPickler.dumps(_NotHandedOver(reason)))


def _limit(error: Exception) -> str | None:
    """The limit that an error of shared memory or file descriptors is of; None for others."""
    text = str(error)
    if "Too many open files" in text or getattr(error, "errno", None) == errno.EMFILE:
        return "the limit of open files (`ulimit -n`) is reached"
    if "ancdata" in text:
        return "the limit of open files (`ulimit -n`) is reached"
    shared = "shared memory" in text or "/torch_" in text or "Bus error" in text
    if shared or getattr(error, "errno", None) == errno.ENOSPC:
        return "/dev/shm is full"
    return None


def _was_killed(batches: Any) -> bool:
    """Whether a worker was. PyTorch says so itself while it waits for a batch, but not where one is
    being taken over, which ends with the connection to the worker."""
    workers = batches._workers
    ended = wait([worker.sentinel for worker in workers], timeout=_ENDING_SECONDS)
    for worker in workers:
        if worker.sentinel in ended:
            worker.join()
    return any(worker.exitcode == -signal.SIGKILL for worker in workers)


def _is_of_killed_worker(error: Exception) -> bool:
    return "killed by signal: Killed" in str(error)


@contextmanager
def named_killed_workers(section: str) -> Iterator[None]:
    """PyTorch's error of a killed worker, which its signal handler raises wherever the rank is at,
    as a BoxlessError with the fix."""
    try:
        yield
    except RuntimeError as error:
        if not _is_of_killed_worker(error):
            raise
        raise BoxlessError(_killed(section)) from error


def _killed(section: str) -> str:
    return (
        f"{section}.num_workers: a worker was killed (SIGKILL), most likely as the memory ran out "
        "(`dmesg` says so). Expected room for two batches a worker beside the rank: take fewer "
        f"workers, lower {section}.micro_batch_size, or give the job more memory. The last "
        "checkpoint is intact"
    )


def _cannot_hand_over(reason: str, section: str) -> str:
    return (
        f"{section}.num_workers: a worker could not hand a batch over: {reason}. Expected room for "
        "two batches a worker: give the container more (docker run --shm-size=8g, or --ipc=host; "
        f"`ulimit -n 65536` for files), lower {section}.micro_batch_size, or read in the rank "
        f"itself with {section}.num_workers=0. The last checkpoint is intact"
    )


def _start_worker(number: int) -> None:
    """A worker does not stop by signals of the whole process group (torchrun's, a terminal's): its
    rank still needs batches to the end of the step. It ends with its rank."""
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class _Turns:
    """Turns that can be asked for again (DataLoader's samplers must be)."""

    def __init__(self, start: int, rank: int, world_size: int, step_size: int, end: int) -> None:
        self._share = (start, rank, world_size)
        self._step_size, self._end = step_size, end

    def __iter__(self) -> Iterator[Turn]:
        return turns(*self._share, step_size=self._step_size, end=self._end)
