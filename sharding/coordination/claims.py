"""Any number of workers share the shards of a folder: each takes one after the other, none waits.

Reached by the stages that make shards. There is no server and no list dealt out beforehand: what is
left to do is what has no manifest, and who does it is who claims it first. All of it lies in the
hidden folder OUT/.claims, which is there only while work is:

    plan.json       what the shards are to become; workers of other settings are refused
    worker-TOKEN    one a worker, with its heartbeat (sharding.coordination.heartbeat)
    TAR.claim       a hard link to the file of the worker that writes TAR
    TAR.again       asks for a done shard to be written once more (sharding.coordination.work_queue)

A claim is made by link(2), which is atomic on network file systems too, and complete from its first
moment; it lives by its worker's heartbeat. The claim of a dead worker is renamed away, looked at
once more, and only then replaced. Should two workers all the same write one shard (one of them was
stopped for longer than its lease), both write the same bytes, and the one that lost its claim gives
up before it renames anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from sharding.coordination.heartbeat import (
    LEASE_SECONDS,
    Heartbeat,
    WorkerState,
    read_worker_state,
    workers_in,
)
from sharding.coordination.work_queue import AGAIN, FOLDER, WorkQueue
from sharding.format.catalog import NAME as CATALOG
from sharding.format.schema import Note, ShardError
from sharding.writing.atomic import TempFileRemoved, canonical_json, sha256_of

PLAN = "plan.json"
CLAIM = ".claim"
SCHEMA = "boxless/claims/1"
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.02, 2.0
_LOG_WAIT_AFTER_SECONDS = 3.0

Result = TypeVar("Result")


class ClaimLost(Exception):
    """Others took this worker for dead and write its shard now; Claim swallows it."""


class CoordinationClosed(Exception):
    """This worker's file is no more: others have ended the work and tidied up."""


class Worker:
    """One of the workers that fill the folder `out`; a context, left when its work is over.

        with Worker(out, num_inputs, fingerprints) as worker:
            for claim in worker.claims():
                with claim:
                    results = claim.track(...)
                    write_shard(out / claim.tar, results, fingerprint=fingerprints[claim.tar])
            with worker.finalize() as is_last:
                if is_last:
                    write_catalog(...)

    num_inputs: {tar: number of its inputs}, and fingerprints: {tar: what shapes it, by name}, are
    the same for all workers. log: gets a line when others' claims are taken over, lost or long
    waited for.

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
    ) -> None:
        self._out, self._folder, self._log = out, out / FOLDER, log
        self._num_inputs, self._counted = num_inputs, set[str]()
        self._plan: dict[str, Any] = {
            "schema": SCHEMA,
            "settings": sha256_of({tar: dict(one) for tar, one in fingerprints.items()}),
            "fingerprint": _shared(fingerprints.values()),
            "num_shards": len(num_inputs),
            "num_inputs": sum(num_inputs.values()),
        }
        self._lease_seconds = lease_seconds
        self._queue = WorkQueue(out, fingerprints)

    def __enter__(self) -> Worker:
        while True:
            with contextlib.suppress(
                CoordinationClosed
            ):  # others tidied up at this moment: once more
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
        `take`, which then tells of the others only."""
        self._counted = self._queue.appear_done()
        return len(self._counted), sum(self._num_inputs[tar] for tar in self._counted)

    def claims(
        self, on_completed_elsewhere: Callable[[int], object] = lambda num_inputs: None
    ) -> Iterator[Claim]:
        """One claimed shard after the other, until all shards are done, by whomever.

        Before the first one is written the folder's catalog goes, as it says that all is done.
        `found` is told the number of inputs of each shard that others turn out to have finished.
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
                return
            if claim is not None:
                yield claim
                wait = _Backoff(self._lease_seconds)
            elif self._queue.left:
                if wait():
                    self._log(f"Waiting for {describe_shards(self._queue.left)} of other workers.")

    @contextlib.contextmanager
    def finalize(self) -> Iterator[bool]:
        """The end, once all shards are done: True for the one worker that has to write the catalog,
        False for the others, who have waited until that was done.

        The hidden folder is removed when the block of the one ends well.
        """
        wait = _Backoff(self._lease_seconds)
        while True:
            try:
                if self._claim(CATALOG):
                    break
            except CoordinationClosed:
                self._tidy_up_after_others()
                yield False
                return
            wait()
        try:
            yield True
            if self._is_held(CATALOG):
                self._clear()
        finally:
            self._release(CATALOG)

    def _enter(self) -> None:
        """Come in among the others; CoordinationClosed if they tidy up at this moment."""
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._heartbeat = Heartbeat(
                self._folder, settings=self._plan["settings"], lease_seconds=self._lease_seconds
            )
        except FileNotFoundError as error:
            raise CoordinationClosed from error
        try:
            is_alone = self._agree()
            # Workers that begin at different places seldom meet.
            self._queue.begin(0 if is_alone else int(self._token, 16))
        except BaseException:
            self._leave()
            raise

    def _next(self, on_completed_elsewhere: Callable[[int], object]) -> Claim | None:
        """The next shard that nobody has, claimed; None where others have all that are left."""
        for tar in self._queue.in_order():
            if self._is_done(tar, on_completed_elsewhere) or not self._claim(tar):
                continue
            # Opened, the folder shows its present state over a network too.
            os.close(os.open(self._out, os.O_RDONLY | os.O_DIRECTORY))
            if self._is_done(tar, on_completed_elsewhere):  # finished and released since we looked
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
        """Whether the claim of that name is this worker's now; CoordinationClosed if its own file is not there."""
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
        holder, now = read_worker_state(claim), self._heartbeat.beat()
        if holder is None or not holder.is_dead(now):
            return False
        aside = self._folder / f".{claim.name}.{secrets.token_hex(8)}"
        try:
            os.rename(claim, aside)
        except FileNotFoundError:  # another one was quicker
            return False
        moved = read_worker_state(aside)
        if moved is not None and moved.token != holder.token:
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
        self._log(
            f"Took over {claim.name.removesuffix(CLAIM)} from {describe_worker(holder, now)}."
        )
        return True

    def _is_held(self, name: str) -> bool:
        """Whether the claim of that name is there and this worker's."""
        seen = read_worker_state(self._folder / (name + CLAIM))
        return seen is not None and seen.token == self._token

    def _release(self, name: str) -> None:
        if self._is_held(name):
            (self._folder / (name + CLAIM)).unlink(missing_ok=True)

    def _ended(self, tar: str, *, well: bool) -> None:
        """A claimed shard is done, or given up."""
        if well:
            (self._folder / (tar + AGAIN)).unlink(missing_ok=True)
            self._queue.left.discard(tar)
        self._release(tar)
        self._heartbeat.end()

    def _agree(self) -> bool:
        """Make sure that all who work here make the same; whether this worker is alone.

        Its own file is there already, so of two that come at once at least one sees the other."""
        now = self._heartbeat.beat()
        alive = [seen for seen in workers_in(self._folder) if not seen.is_dead(now)]
        for seen in alive:
            if seen.record is not None and seen.record.settings != self._plan["settings"]:
                raise self._other_settings(read_plan(self._out), describe_worker(seen, now))
        if read_plan(self._out) != self._plan:
            hidden = self._folder / f".{PLAN}.{self._token}"
            try:
                hidden.write_bytes(canonical_json(self._plan) + b"\n")
                os.replace(hidden, self._folder / PLAN)
            except FileNotFoundError as error:
                raise CoordinationClosed from error
        return len(alive) <= 1

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
            f"{self._out}: got no {FOLDER} any more while {describe_shards(self._queue.left)} are not "
            "as this worker makes them, expected it to stay until all are: others ended the work, "
            "with other settings, or removed it. Start again if these settings are the right ones"
        )

    def _clear(self) -> None:
        """Remove everything in the hidden folder: others' files first, then the plan, this worker's
        own files last, as to the end they say to newcomers that somebody is at work."""
        ours = {self._heartbeat.path.name, CATALOG + CLAIM}
        names = set(os.listdir(self._folder)) - ours
        for name in sorted(names, key=lambda name: name == PLAN):
            (self._folder / name).unlink(missing_ok=True)

    def _tidy_up_after_others(self) -> None:
        """Wait for the one that closes and tidies up; finish what it left if it dies over that."""
        wait = _Backoff(self._lease_seconds)
        while (holder := read_worker_state(self._folder / (CATALOG + CLAIM))) is not None:
            if holder.is_dead(self._heartbeat.beat()):
                break
            wait()
        plan = read_plan(self._out)
        if plan is not None and plan["settings"] != self._plan["settings"]:
            return  # others have begun something else since
        now = self._heartbeat.beat()
        others = [seen for seen in workers_in(self._folder) if seen.token != self._token]
        is_alone = all(seen.is_dead(now) for seen in others)
        with contextlib.suppress(FileNotFoundError):
            for path in list(self._folder.iterdir()):
                seen = read_worker_state(path)
                if path.suffix != AGAIN and seen is not None and (is_alone or seen.has_ended):
                    path.unlink(missing_ok=True)

    def _leave(self) -> None:
        """Take away this worker's file; the hidden folder too when nothing is left in it."""
        self._heartbeat.stop()
        with contextlib.suppress(OSError):
            os.rmdir(self._folder)

    @property
    def _token(self) -> str:
        return self._heartbeat.record.token


class Claim:
    """A shard that is this worker's to write; a context, released at its end.

    An error in the block leaves the shard to others. That others took this worker for dead is no
    error: the block ends and the worker goes on.
    """

    def __init__(self, worker: Worker, tar: str) -> None:
        self.tar = tar
        self._worker = worker

    def track(self, results: Iterable[Result]) -> Iterator[Result]:
        """Hands the results of the shard on, counted; ClaimLost when the shard is another's now.

        A Note is no input of its own.
        """
        heart = self._worker._heartbeat
        num_beats = heart.num_beats
        for result in results:
            if heart.num_beats != num_beats:
                num_beats = heart.num_beats
                self._check()
            if not isinstance(result, Note):
                heart.advance()
            yield result
        self._check()

    def _check(self) -> None:
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
        self._worker._ended(self.tar, well=error is None)
        is_lost = isinstance(error, (ClaimLost, TempFileRemoved))
        if is_lost:
            self._worker._log(
                f"Gave up {self.tar}: this worker was silent for so long that another took it over."
            )
        return is_lost


class _Backoff:
    """Waits a little longer each time, never so long that a dead worker stays unseen."""

    def __init__(self, lease_seconds: float) -> None:
        self._longest = min(_LONGEST_WAIT_SECONDS, lease_seconds / 4)
        self._next = _FIRST_WAIT_SECONDS
        self._waited = 0.0

    def __call__(self) -> bool:
        """Wait; whether it is just now long enough to be told."""
        time.sleep(self._next)
        self._waited += self._next
        is_long = self._waited >= _LOG_WAIT_AFTER_SECONDS > self._waited - self._next
        self._next = min(self._next * 1.5, self._longest)
        return is_long


def read_plan(out: Path) -> dict[str, Any] | None:
    """What the workers in `out` agreed on: settings (a digest), fingerprint, num_shards and
    num_inputs; None where nobody is at work or was."""
    try:
        plan = json.loads((out / FOLDER / PLAN).read_bytes())
        return plan if plan["schema"] == SCHEMA else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _shared(fingerprints: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """What all the fingerprints say alike."""
    shared: set[tuple[str, str]] | None = None
    for fingerprint in fingerprints:
        shared = set(fingerprint.items()) & (fingerprint.items() if shared is None else shared)
    return dict(shared or ())


def describe_worker(seen: WorkerState, now: float) -> str:
    name = seen.record.name if seen.record else "an unknown worker"
    if seen.has_ended:
        return f"{name}, whose process has ended"
    return f"{name}, whose last heartbeat was {now - seen.heartbeat:.0f} s ago"


def describe_shards(tars: Collection[str]) -> str:
    first = min(tars)
    return first if len(tars) == 1 else f"{len(tars)} shards ({first} and others)"
