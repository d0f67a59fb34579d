"""Any number of workers share the shards of a folder by claims.

There is no coordinator process and no assignment in advance. A shard without a manifest is to be
written, and the worker that claims it first writes it. The state is in the folder OUT/.claims,
which the last worker removes:

    plan.json       what the shards are to become; workers of other settings are refused. It is
                    removed when all is done
    worker-TOKEN    one a worker, with its heartbeat (sharding.coordination.heartbeat)
    TAR.claim       a hard link to the file of the worker that writes TAR
    TAR.failures    failed attempts at TAR (sharding.coordination.attempts)
    TAR.again       asks for a done shard to be written again (sharding.coordination.work_queue)

A claim is made by link(2), which is atomic on network file systems too, and complete from its first
moment; it lives by its worker's heartbeat. The claim of a dead worker is renamed away, read once
more, and only then replaced. Should two workers all the same write one shard (one of them was
stopped for longer than its lease), the one that lost its claim finds out after it has synced its
file and before it renames it (Claim.check_owner, which write_shard calls); write_shard sees to the
rest.

A shard that fails twice is skipped: the workers continue with the others, and `claims` ends with
an error that lists it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

from boxless.errors import BoxlessError
from sharding.coordination.attempts import (
    FAILURES,
    FailedAttempt,
    forget_exhausted,
    forget_failures,
    is_exhausted,
    read_failures,
    record_failure,
)
from sharding.coordination.heartbeat import (
    LEASE_SECONDS,
    PREFIX,
    STALL_SECONDS,
    Heartbeat,
    LivenessMonitor,
    WorkerState,
    read_worker_state,
    workers_in,
)
from sharding.coordination.work_queue import AGAIN, FOLDER, WorkQueue
from sharding.format.catalog import NAME as CATALOG
from sharding.format.manifest import manifest_path
from sharding.format.schema import Note, ShardError
from sharding.writing.atomic import TempFileRemoved, canonical_json, remove_stale, sha256_of

PLAN = "plan.json"
CLAIM = ".claim"
SCHEMA = "boxless/claims/2"
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.02, 2.0
_LOG_WAIT_AFTER_SECONDS = 3.0

Result = TypeVar("Result")


class ClaimLost(Exception):
    """Another worker took over this worker's shard; Claim handles it."""


class ShardsFailed(ShardError):
    """Shards were skipped after repeated failures; the text lists them with the reasons."""


class CoordinationClosed(Exception):
    """This worker's file was removed: other workers finished and cleaned up."""


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
        self._out, self._folder, self._log = out, out / FOLDER, log
        self._num_inputs, self._counted = num_inputs, set[str]()
        self._plan: dict[str, Any] = {
            "schema": SCHEMA,
            "settings": sha256_of({tar: dict(one) for tar, one in fingerprints.items()}),
            "fingerprint": _shared(fingerprints.values()),
            "num_shards": len(num_inputs),
            "num_inputs": sum(num_inputs.values()),
        }
        self._lease_seconds, self._stall_seconds = lease_seconds, stall_seconds
        self._fatal = fatal
        self._monitor = LivenessMonitor()
        self._set_aside: dict[str, list[FailedAttempt]] = {}
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
        self._leave()

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
        if self._set_aside:
            raise ShardsFailed(_describe_set_aside(self._out, self._set_aside))

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
                if self._claim(CATALOG):
                    break
            except CoordinationClosed:
                yield False
                return
            wait()
        try:
            yield True
            if self._is_held(CATALOG):
                self._close()
        finally:
            self._release(CATALOG)

    def _enter(self) -> None:
        """Come in among the others; CoordinationClosed if they tidy up at this moment."""
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._heartbeat = Heartbeat(
                self._folder,
                settings=self._plan["settings"],
                lease_seconds=self._lease_seconds,
                stall_seconds=self._stall_seconds,
            )
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                raise CoordinationClosed from error
            raise
        try:
            others = self._agree()
            remove_stale(self._out, _file_names(self._num_inputs))
            # Failures are of an earlier run when no worker is active yet: then each shard is tried
            # again, also where several workers start at once.
            if all(state.record and state.record.is_starting for state in others):
                forget_exhausted(self._folder)
            self._heartbeat.end_start()
            # Workers that begin at different places seldom meet.
            self._queue.begin(int(self._token, 16) if others else 0)
        except BaseException:
            self._leave()
            raise

    def _next(self, on_completed_elsewhere: Callable[[int], object]) -> Claim | None:
        """Claims the next unclaimed shard; None if others have claimed all that are left."""
        for tar in self._queue.in_order():
            if self._is_done(tar, on_completed_elsewhere) or not self._claim(tar):
                continue
            # Opened, the folder shows its present state over a network too.
            os.close(os.open(self._out, os.O_RDONLY | os.O_DIRECTORY))
            if self._is_done(tar, on_completed_elsewhere):  # finished and released since we looked
                self._release(tar)
                continue
            if is_exhausted(attempts := read_failures(self._folder, tar)):
                self._set_aside[tar] = attempts
                self._queue.left.discard(tar)
                self._release(tar)
                continue
            (self._out / CATALOG).unlink(missing_ok=True)
            self._heartbeat.begin(tar, self._num_inputs[tar])
            return Claim(self, tar)
        return None

    def _is_done(self, tar: str, on_completed_elsewhere: Callable[[int], object]) -> bool:
        done = self._queue.is_done(tar)
        if done and tar not in self._counted:
            on_completed_elsewhere(self._num_inputs[tar])
        return done

    def _claim(self, name: str) -> bool:
        """Whether the claim of that name is this worker's now; CoordinationClosed if its own file
        is not there."""
        claim = self._folder / (name + CLAIM)
        try:
            os.link(self._heartbeat.path, claim)
        except FileExistsError:
            if not self._is_held(name) and not self._take_over(claim):
                return False
        except FileNotFoundError as error:
            raise CoordinationClosed from error
        except OSError as error:
            raise ShardError(
                f"{claim}: got {error.strerror} for a hard link, by which workers claim shards; "
                "expected a file system that has them, with room: write the folder to another one"
            ) from error
        there = read_plan(self._out)
        if there is None or there["settings"] != self._plan["settings"]:
            self._release(name)
            if there is None:
                raise CoordinationClosed
            raise self._other_settings(there, "others that came after it")
        return True

    def _take_over(self, claim: Path) -> bool:
        """Whether a dead worker held the claim and this one has it now."""
        holder = read_worker_state(claim)
        if holder is None or not self._monitor.is_dead(holder):
            return False
        aside = self._folder / f".{claim.name}.{secrets.token_hex(8)}"
        try:
            os.rename(claim, aside)
        except FileNotFoundError:  # another one was quicker
            return False
        moved = read_worker_state(aside)
        if moved is None or moved.token != holder.token:
            # Another one was quicker and claimed it: give it back, unless a third has it by now.
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                os.link(aside, claim)
            aside.unlink(missing_ok=True)
            return False
        aside.unlink(missing_ok=True)
        try:
            os.link(self._heartbeat.path, claim)
        except FileExistsError:
            return False
        except FileNotFoundError as error:
            raise CoordinationClosed from error
        tar = claim.name.removesuffix(CLAIM)
        description = _describe_worker(holder, self._monitor)
        self._log(f"Took over {tar} from {description}.")
        if tar != CATALOG and holder.record is not None and holder.record.tar == tar:
            kind: Literal["stalled", "died"] = "stalled" if holder.record.is_stalled else "died"
            attempt = FailedAttempt(kind=kind, worker=holder.record.name, reason=description)
            record_failure(self._folder, tar, attempt)
        return True

    def _is_held(self, name: str) -> bool:
        """Whether the claim of that name is there and this worker's."""
        seen = read_worker_state(self._folder / (name + CLAIM))
        return seen is not None and seen.token == self._token

    def _release(self, name: str) -> None:
        if self._is_held(name):
            (self._folder / (name + CLAIM)).unlink(missing_ok=True)

    def _ended(self, tar: str, error: BaseException | None) -> None:
        """A claimed shard is done (no error), or given up."""
        with contextlib.suppress(OSError):  # the shard itself is safe; others clean up
            if error is None:
                (self._folder / (tar + AGAIN)).unlink(missing_ok=True)
                forget_failures(self._folder, tar)
                self._queue.left.discard(tar)
            self._release(tar)
            self._heartbeat.end()

    def _note_failure(self, tar: str, error: Exception) -> None:
        """Count an attempt that ended with an error, while the claim is still held."""
        reason = f"{type(error).__name__}: {error}"
        name = self._heartbeat.record.name
        record_failure(self._folder, tar, FailedAttempt(kind="error", worker=name, reason=reason))
        num = len(read_failures(self._folder, tar))
        lines = [] if isinstance(error, ShardError) else traceback.format_exception(error)
        self._log("".join([*lines, f"Failed at {tar} (attempt {num}): {reason}"]))

    def _agree(self) -> list[WorkerState]:
        """Make sure that all who work here make the same; the other living workers.

        Its own file is there already, so of two that come at once at least one sees the other.
        Whether a worker of other settings on another machine lives shows within its lease."""
        while True:
            states = [state for state in workers_in(self._folder) if state.token != self._token]
            others = [state for state in states if not self._monitor.is_dead(state)]
            settings = self._plan["settings"]
            foreign = [one for one in others if one.record and one.record.settings != settings]
            for state in foreign:
                if self._monitor.is_known_alive(state):
                    who = _describe_worker(state, self._monitor)
                    raise self._other_settings(read_plan(self._out), who)
            if not foreign:
                break
            time.sleep(min(_LONGEST_WAIT_SECONDS, self._lease_seconds / 4))
        if read_plan(self._out) != self._plan:
            hidden = self._folder / f".{PLAN}.{self._token}"
            try:
                hidden.write_bytes(canonical_json(self._plan) + b"\n")
                os.replace(hidden, self._folder / PLAN)
            except FileNotFoundError as error:
                raise CoordinationClosed from error
        return others

    def _other_settings(self, there: Mapping[str, Any] | None, who: str) -> ShardError:
        ours = self._plan["fingerprint"]
        theirs = there["fingerprint"] if there else ours
        differ = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
        return ShardError(
            f"{self._out}: got other settings ({', '.join(differ) or 'inputs'}) than those of {who}"
            "; expected all workers of a folder to have the same. Wait until the others have ended "
            "or stop them, or take another folder"
        )

    def _cleared(self) -> ShardError:
        return ShardError(
            f"{self._out}: got no {FOLDER} any more while {_describe_shards(self._queue.left)} are not "
            "as this worker makes them, expected it to stay until all are: others ended the work, "
            "with other settings, or removed it. Start again if these settings are the right ones"
        )

    def _close(self) -> None:
        """All is done: remove the plan, and then all that killed workers and failed attempts left.

        The plan goes first: who comes or claims later sees that it is gone and starts over. So
        nothing that is removed here can be in use: not the temporary files of a worker that comes
        (it makes them once more), nor claims, as their shards are done."""
        with contextlib.suppress(OSError):
            (self._folder / PLAN).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(self._folder)):
                if self._is_left_over(name):
                    (self._folder / name).unlink(missing_ok=True)

    def _is_left_over(self, name: str) -> bool:
        """Whether nobody needs the file of that name once all shards are done."""
        if name.startswith(".") or name.endswith(FAILURES):
            return True
        state = read_worker_state(self._folder / name)
        if state is None or state.token == self._token:
            return False
        if name.startswith(PREFIX):
            return state.has_ended
        tar = name.removesuffix(CLAIM)
        if tar == name or tar == CATALOG:
            return False
        is_of_these_settings = state.record is None or (
            state.record.settings == self._plan["settings"]
        )
        is_requested = (self._folder / (tar + AGAIN)).exists()
        return state.has_ended or (is_of_these_settings and not is_requested)

    def _leave(self) -> None:
        """Take away this worker's file; the hidden folder too when nothing is left in it, which
        means that no worker uses it: each worker has a file there from its first moment to its
        last."""
        self._heartbeat.stop()
        with contextlib.suppress(OSError):
            os.rmdir(self._folder)

    @property
    def _token(self) -> str:
        return self._heartbeat.record.token


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
        heartbeat = self._worker._heartbeat
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
        if not self._worker._is_held(self.tar):
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
                f"Gave up {self.tar}: this worker was silent for so long that another took it over."
            )
        is_fatal = isinstance(error, worker._fatal) or (
            isinstance(error, Exception) and ends_worker(error)
        )
        is_counted = isinstance(error, Exception) and not is_lost and not is_fatal
        if is_counted:
            assert isinstance(error, Exception)
            worker._note_failure(self.tar, error)
        worker._ended(self.tar, error)
        return is_lost or is_counted


def ends_worker(error: Exception) -> bool:
    """Whether an error is no fault of the shard: the disk, the memory or the device fails, and the
    next shard would fail alike."""
    if isinstance(error, (OSError, MemoryError)):
        return True
    return type(error).__name__ in ("AcceleratorError", "OutOfMemoryError") or any(
        words in str(error) for words in ("CUDA error", "CUDNN_STATUS", "device-side assert")
    )


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


def read_plan(out: Path) -> dict[str, Any] | None:
    """What the workers in `out` agreed on: settings (a digest), fingerprint, num_shards and
    num_inputs; None where no worker is or was active."""
    try:
        plan = json.loads((out / FOLDER / PLAN).read_bytes())
        return plan if plan["schema"] == SCHEMA else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _file_names(tars: Iterable[str]) -> set[str]:
    return {name for tar in tars for name in (tar, manifest_path(Path(tar)).name)}


def _shared(fingerprints: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The entries that all fingerprints have in common."""
    shared: set[tuple[str, str]] | None = None
    for fingerprint in fingerprints:
        shared = set(fingerprint.items()) & (fingerprint.items() if shared is None else shared)
    return dict(shared or ())


def _describe_worker(state: WorkerState, monitor: LivenessMonitor) -> str:
    name = state.record.name if state.record else "an unknown worker"
    if state.has_ended:
        return f"{name}, whose process has ended"
    silent = f"{monitor.silent_seconds(state):.0f} s"
    if state.record is not None and state.record.is_stalled:
        return f"{name}, which stopped its heartbeat because its work stood still, {silent} ago"
    return f"{name}, whose last new heartbeat was {silent} ago"


def _describe_set_aside(out: Path, shards: Mapping[str, Sequence[FailedAttempt]]) -> str:
    listed = "\n".join(
        f"  {tar}: {len(attempts)} attempts, the last: {attempts[-1].worker}: {attempts[-1].reason}"
        for tar, attempts in sorted(shards.items())
    )
    return (
        f"{out}: got {len(shards)} shards that failed again and again, expected all to be written; "
        f"the others are done. Fix what the reasons name and run the stage again:\n{listed}"
    )


def _describe_shards(tars: Collection[str]) -> str:
    first = min(tars)
    return first if len(tars) == 1 else f"{len(tars)} shards ({first} and others)"
