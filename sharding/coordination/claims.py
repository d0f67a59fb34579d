"""Distributes the shards of a folder over any number of workers, by claims.

There is no coordinator process and no assignment in advance. A shard without a manifest is to be
written, and the first worker that claims it writes it. The state is in the folder OUT/.claims,
which the last worker removes:

    plan.json       what is to be written; workers of other settings are refused, and it is removed
                    when all is done (sharding.coordination.plan)
    worker-TOKEN    one a worker, with its heartbeat (sharding.coordination.heartbeat)
    TAR.claim       a hard link to the file of the worker that writes TAR
                    (sharding.coordination.claim_folder)
    TAR.failures    failed attempts at TAR (sharding.coordination.attempts)
    TAR.again       asks for a done shard to be written again (sharding.coordination.work_queue)

Two workers can write one shard when one of them was stopped for longer than its lease. The one that
lost its claim finds out after it has synced its file and before it renames it (Claim.check_owner,
which write_shard calls).

A shard that fails twice is skipped: the workers continue with the others, and `claims` ends with
an error that lists it.
"""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from boxless.errors import BoxlessError
from sharding.coordination.attempts import (
    FailedAttempt,
    clear_exhausted,
    clear_failures,
    is_exhausted,
    read_failures,
    record_failure,
)
from sharding.coordination.claim_folder import ClaimFolder, CoordinationClosed
from sharding.coordination.fatal_errors import ends_worker
from sharding.coordination.heartbeat import LEASE_SECONDS, STALL_SECONDS
from sharding.coordination.plan import make_plan
from sharding.coordination.work_queue import AGAIN, FOLDER, WorkQueue
from sharding.format.catalog import NAME as CATALOG
from sharding.format.manifest import manifest_path
from sharding.format.schema import Note, ShardError
from sharding.writing.atomic import TempFileRemoved, remove_stale

_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.02, 2.0
_LOG_WAIT_AFTER_SECONDS = 3.0

Result = TypeVar("Result")


class ClaimLost(Exception):
    """Another worker took over this worker's shard; Claim handles it."""


class ShardsFailed(ShardError):
    """Shards were skipped after repeated failures; the text lists them with the reasons."""


class Worker:
    """One of the workers that fill the folder `out`; a context, left when its work is over.

        with Worker(out, num_inputs, fingerprints) as worker:
            for claim in worker.claims():
                with claim:
                    results = claim.track(...)
                    write_shard(
                        out / claim.tar,
                        results,
                        fingerprint=fingerprints[claim.tar],
                        check_owner=claim.check_owner,
                    )
            with worker.finalize() as is_last:
                if is_last:
                    write_catalog(...)

    num_inputs: {tar: number of its inputs}, and fingerprints: {tar: what shapes it, by name}, are
    the same for all workers. log: gets a line when others' claims are taken over, lost or long
    waited for, and when an attempt fails. lease_seconds: a worker whose heartbeat does not move for
    so long is dead. stall_seconds: a worker that counts no input for so long stops its heartbeat.
    fatal: errors that are no fault of a shard and end the worker at once, beside those of
    `ends_worker`.

    Raises ShardError where living workers of other settings are in the folder.
    """

    def __init__(
        self,
        out: Path,
        num_inputs: Mapping[str, int],
        fingerprints: Mapping[str, Mapping[str, str]],
        *,
        log: Callable[[str], None] = print,
        lease_seconds: float = LEASE_SECONDS,
        stall_seconds: float = STALL_SECONDS,
        fatal: tuple[type[Exception], ...] = (),
    ) -> None:
        for name, value in (("lease_seconds", lease_seconds), ("stall_seconds", stall_seconds)):
            if not value > 0:
                raise BoxlessError(f"{name}: got {value}, expected more than 0")
        self._out, self._log = out, log
        self._num_inputs, self._counted = num_inputs, set[str]()
        self._lease_seconds, self._fatal = lease_seconds, fatal
        self._claims = ClaimFolder(
            out,
            make_plan(num_inputs, fingerprints),
            log=log,
            lease_seconds=lease_seconds,
            stall_seconds=stall_seconds,
        )
        self._skipped: dict[str, list[FailedAttempt]] = {}
        self._queue = WorkQueue(out, fingerprints)

    def __enter__(self) -> Worker:
        while True:
            # Another worker may remove the folder at this moment; then try again.
            with contextlib.suppress(CoordinationClosed):
                self._enter()
                return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._claims.leave()

    def count_done(self) -> tuple[int, int]:
        """Shards, and inputs in them, that were done when this worker came; to be asked before
        `claims`, which then reports the others only."""
        self._counted = self._queue.appear_done()
        return len(self._counted), sum(self._num_inputs[tar] for tar in self._counted)

    def claims(
        self, on_completed_elsewhere: Callable[[int], object] = lambda num_inputs: None
    ) -> Iterator[Claim]:
        """One claimed shard after the other, until all shards are done, here or elsewhere.

        Before the first one is written the folder's catalog is removed, as it says that all is
        done. `on_completed_elsewhere` gets the number of inputs of each shard that others finished.
        Raises ShardsFailed at the end if shards were skipped.
        """
        wait = _Backoff(self._lease_seconds)
        while self._queue.left:
            try:
                claim = self._next(on_completed_elsewhere)
            except CoordinationClosed:
                for tar in self._queue.in_order():
                    self._is_done(tar, on_completed_elsewhere)
                if self._queue.left:
                    raise self._cleared() from None
                break
            if claim is not None:
                yield claim
                wait = _Backoff(self._lease_seconds)
            elif self._queue.left:
                if wait():
                    self._log(f"Waiting for {_describe_shards(self._queue.left)} of other workers.")
        if self._skipped:
            raise ShardsFailed(_describe_skipped(self._out, self._skipped))

    @contextlib.contextmanager
    def finalize(self) -> Iterator[bool]:
        """The end, once all shards are done: True for the one worker that has to write the catalog,
        False for the others, who have waited until that was done.

        When the block of the one ends well, the plan goes. The files of other workers stay, and the
        hidden folder with them, until the last one leaves.
        """
        wait = _Backoff(self._lease_seconds)
        while True:
            try:
                if self._claims.claim(CATALOG):
                    break
            except CoordinationClosed:
                yield False
                return
            wait()
        try:
            yield True
            if self._claims.is_held(CATALOG):
                self._claims.close()
        finally:
            self._claims.release(CATALOG)

    def _enter(self) -> None:
        """Come in among the others; CoordinationClosed if they clean up at this moment."""
        others = self._claims.enter()
        try:
            remove_stale(self._out, _file_names(self._num_inputs))
            # Failures are of an earlier run when no worker is active yet: then each shard is tried
            # again, also where several workers start at once.
            if all(state.record and state.record.is_starting for state in others):
                clear_exhausted(self._claims.path)
            self._claims.heartbeat.end_start()
            # Workers that begin at different places seldom meet.
            self._queue.begin(int(self._claims.token, 16) if others else 0)
        except BaseException:
            self._claims.leave()
            raise

    def _next(self, on_completed_elsewhere: Callable[[int], object]) -> Claim | None:
        """Claims the next unclaimed shard; None if others have claimed all that are left."""
        for tar in self._queue.in_order():
            if self._is_done(tar, on_completed_elsewhere) or not self._claims.claim(tar):
                continue
            # Opened, the folder shows its present state over a network too.
            os.close(os.open(self._out, os.O_RDONLY | os.O_DIRECTORY))
            if self._is_done(tar, on_completed_elsewhere):  # finished and released since we looked
                self._claims.release(tar)
                continue
            if is_exhausted(attempts := read_failures(self._claims.path, tar)):
                self._skipped[tar] = attempts
                self._queue.left.discard(tar)
                self._claims.release(tar)
                continue
            (self._out / CATALOG).unlink(missing_ok=True)
            self._claims.heartbeat.begin(tar, self._num_inputs[tar])
            return Claim(self, tar)
        return None

    def _is_done(self, tar: str, on_completed_elsewhere: Callable[[int], object]) -> bool:
        done = self._queue.is_done(tar)
        if done and tar not in self._counted:
            on_completed_elsewhere(self._num_inputs[tar])
        return done

    def _finish(self, tar: str, error: BaseException | None) -> None:
        """A claimed shard is done (no error), or given up."""
        with contextlib.suppress(OSError):  # the shard itself is safe; others clean up
            if error is None:
                (self._claims.path / (tar + AGAIN)).unlink(missing_ok=True)
                clear_failures(self._claims.path, tar)
                self._queue.left.discard(tar)
            self._claims.release(tar)
            self._claims.heartbeat.end()

    def _note_failure(self, tar: str, error: Exception) -> None:
        """Count an attempt that ended with an error, while the claim is still held."""
        reason = f"{type(error).__name__}: {error}"
        name = self._claims.heartbeat.record.name
        record_failure(
            self._claims.path, tar, FailedAttempt(kind="error", worker=name, reason=reason)
        )
        num = len(read_failures(self._claims.path, tar))
        lines = [] if isinstance(error, ShardError) else traceback.format_exception(error)
        self._log("".join([*lines, f"Failed at {tar} (attempt {num}): {reason}"]))

    def _cleared(self) -> ShardError:
        return ShardError(
            f"{self._out}: got no {FOLDER} any more while {_describe_shards(self._queue.left)} are not "
            "as this worker makes them, expected it to stay until all are: others ended the work, "
            "with other settings, or removed it. Start again if these settings are the right ones"
        )


class Claim:
    """A shard that is this worker's to write; a context, released at its end.

    An error in the block leaves the shard to others. That others took this worker for dead is no
    error: the block ends and the worker continues.
    """

    def __init__(self, worker: Worker, tar: str) -> None:
        self.tar = tar
        self._worker = worker

    def track(self, results: Iterable[Result]) -> Iterator[Result]:
        """Hands the results of the shard on, counted; ClaimLost when the shard is another's now.

        A Note is no input of its own.
        """
        heartbeat = self._worker._claims.heartbeat
        num_beats = heartbeat.num_beats
        for result in results:
            if heartbeat.num_beats != num_beats:
                num_beats = heartbeat.num_beats
                self.check_owner()
            if not isinstance(result, Note):
                heartbeat.advance()
            yield result
        self.check_owner()

    def check_owner(self) -> None:
        """ClaimLost unless the shard is still this worker's."""
        if not self._worker._claims.is_held(self.tar):
            raise ClaimLost(self.tar)

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        worker = self._worker
        is_lost = isinstance(error, (ClaimLost, TempFileRemoved))
        if is_lost:
            worker._log(
                f"Lost the claim of {self.tar}: this worker's heartbeat was silent for longer than its "
                "lease, and another worker took it over."
            )
        is_fatal = isinstance(error, worker._fatal) or (
            isinstance(error, Exception) and ends_worker(error)
        )
        is_counted = isinstance(error, Exception) and not is_lost and not is_fatal
        if is_counted:
            assert isinstance(error, Exception)
            worker._note_failure(self.tar, error)
        worker._finish(self.tar, error)
        return is_lost or is_counted


class _Backoff:
    """Exponential backoff, bounded so that a dead worker is noticed in time."""

    def __init__(self, lease_seconds: float) -> None:
        self._longest = min(_LONGEST_WAIT_SECONDS, lease_seconds / 4)
        self._next = _FIRST_WAIT_SECONDS
        self._waited = 0.0

    def __call__(self) -> bool:
        """Wait; whether it has become long enough to be logged."""
        time.sleep(self._next)
        self._waited += self._next
        is_long = self._waited >= _LOG_WAIT_AFTER_SECONDS > self._waited - self._next
        self._next = min(self._next * 1.5, self._longest)
        return is_long


def _file_names(tars: Iterable[str]) -> set[str]:
    return {name for tar in tars for name in (tar, manifest_path(Path(tar)).name)}


def _describe_skipped(out: Path, shards: Mapping[str, Sequence[FailedAttempt]]) -> str:
    listed = "\n".join(
        f"  {tar}: {len(attempts)} attempts, the last: {_describe_attempt(attempts[-1])}"
        for tar, attempts in sorted(shards.items())
    )
    return (
        f"{out}: got {len(shards)} shards that failed repeatedly, expected all to be written; "
        f"the others are done. Fix what the reasons name and run the stage again:\n{listed}"
    )


def _describe_attempt(attempt: FailedAttempt) -> str:
    if attempt.kind == "error":
        return f"{attempt.worker}: {attempt.reason}"
    # Its reason begins with the worker's name.
    hint = "; killed (out of memory?) or crashed, see its log" if attempt.kind == "died" else ""
    return attempt.reason + hint


def _describe_shards(tars: Collection[str]) -> str:
    first = min(tars)
    return first if len(tars) == 1 else f"{len(tars)} shards ({first} and others)"
