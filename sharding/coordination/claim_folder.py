"""The folder OUT/.claims: who works in OUT, on what plan, and who holds which claim.

A claim is a hard link to the file of the worker that holds it. link(2) is atomic on network file
systems too, and the claim is complete from its first moment; it is valid while the heartbeat of its
worker goes on. The claim of a dead worker is renamed away, read once more, and only then replaced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from sharding.coordination.attempts import FAILURES, FailedAttempt, record_failure
from sharding.coordination.heartbeat import (
    PREFIX,
    Heartbeat,
    LivenessMonitor,
    WorkerState,
    read_worker_state,
    workers_in,
)
from sharding.coordination.plan import other_settings_error, read_plan, remove_plan, write_plan
from sharding.coordination.work_queue import AGAIN, FOLDER
from sharding.format.catalog import NAME as CATALOG
from sharding.format.schema import ShardError

CLAIM = ".claim"
_LONGEST_WAIT_SECONDS = 2.0


class CoordinationClosed(Exception):
    """This worker's file was removed: other workers finished and cleaned up."""


class ClaimFolder:
    """One worker's part in the folder of claims of `out`, from `enter` to `leave`.

    plan: what it makes (sharding.coordination.plan). log: gets a line when a claim is taken over.
    lease_seconds and stall_seconds: as `Worker` has them.
    """

    heartbeat: Heartbeat

    def __init__(
        self,
        out: Path,
        plan: Mapping[str, Any],
        *,
        log: Callable[[str], None],
        lease_seconds: float,
        stall_seconds: float,
    ) -> None:
        self.path = out / FOLDER
        self._out, self._plan, self._log = out, plan, log
        self._lease_seconds, self._stall_seconds = lease_seconds, stall_seconds
        self._monitor = LivenessMonitor()

    @property
    def token(self) -> str:
        """This worker's random text, by which its claims are known."""
        return self.heartbeat.record.token

    def enter(self) -> list[WorkerState]:
        """Come in, with a file and a heartbeat; the other living workers.

        Raises CoordinationClosed if others clean up at this moment, and ShardError where living
        workers of other settings are in the folder.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self.heartbeat = Heartbeat(
                self.path,
                settings=self._plan["settings"],
                lease_seconds=self._lease_seconds,
                stall_seconds=self._stall_seconds,
            )
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                raise CoordinationClosed from error
            raise
        try:
            return self._agree()
        except BaseException:
            self.leave()
            raise

    def claim(self, name: str) -> bool:
        """Whether the claim of that name is this worker's now; CoordinationClosed if its own file
        is not there."""
        claim = self.path / (name + CLAIM)
        try:
            os.link(self.heartbeat.path, claim)
        except FileExistsError:
            if not self.is_held(name) and not self._take_over(claim):
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
            self.release(name)
            if there is None:
                raise CoordinationClosed
            raise other_settings_error(self._out, self._plan, there, "others that came after it")
        return True

    def is_held(self, name: str) -> bool:
        """Whether the claim of that name is there and this worker's."""
        seen = read_worker_state(self.path / (name + CLAIM))
        return seen is not None and seen.token == self.token

    def release(self, name: str) -> None:
        """Remove the claim of that name if it is this worker's."""
        if self.is_held(name):
            (self.path / (name + CLAIM)).unlink(missing_ok=True)

    def close(self) -> None:
        """All is done: remove the plan, and then all that killed workers and failed attempts left.

        The plan goes first: who comes or claims later sees that it is gone and starts over. So
        nothing that is removed here can be in use: not the temporary files of a worker that comes
        (it makes them once more), nor claims, as their shards are done."""
        remove_plan(self._out)
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(self.path)):
                if self._is_left_over(name):
                    (self.path / name).unlink(missing_ok=True)

    def leave(self) -> None:
        """Take away this worker's file; the hidden folder too when nothing is left in it, which
        means that no worker uses it: each worker has a file there from its first moment to its
        last."""
        self.heartbeat.stop()
        with contextlib.suppress(OSError):
            os.rmdir(self.path)

    def _agree(self) -> list[WorkerState]:
        """Make sure that all workers here have the same plan; the other living workers.

        Its own file is there already, so of two that come at once at least one sees the other.
        Whether a worker of other settings on another machine lives shows within its lease."""
        while True:
            states = [state for state in workers_in(self.path) if state.token != self.token]
            others = [state for state in states if not self._monitor.is_dead(state)]
            settings = self._plan["settings"]
            foreign = [one for one in others if one.record and one.record.settings != settings]
            for state in foreign:
                if self._monitor.is_known_alive(state):
                    who = _describe_worker(state, self._monitor)
                    raise other_settings_error(self._out, self._plan, read_plan(self._out), who)
            if not foreign:
                break
            time.sleep(min(_LONGEST_WAIT_SECONDS, self._lease_seconds / 4))
        if read_plan(self._out) != self._plan:
            try:
                write_plan(self._out, self._plan, self.token)
            except FileNotFoundError as error:
                raise CoordinationClosed from error
        return others

    def _take_over(self, claim: Path) -> bool:
        """Whether a dead worker held the claim and this one has it now."""
        holder = read_worker_state(claim)
        if holder is None or not self._monitor.is_dead(holder):
            return False
        aside = self.path / f".{claim.name}.{secrets.token_hex(8)}"
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
            os.link(self.heartbeat.path, claim)
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
            record_failure(self.path, tar, attempt)
        return True

    def _is_left_over(self, name: str) -> bool:
        """Whether nobody needs the file of that name once all shards are done."""
        if name.startswith(".") or name.endswith(FAILURES):
            return True
        state = read_worker_state(self.path / name)
        if state is None or state.token == self.token:
            return False
        if name.startswith(PREFIX):
            return state.has_ended
        tar = name.removesuffix(CLAIM)
        if tar == name or tar == CATALOG:
            return False
        is_of_these_settings = state.record is None or (
            state.record.settings == self._plan["settings"]
        )
        is_requested = (self.path / (tar + AGAIN)).exists()
        return state.has_ended or (is_of_these_settings and not is_requested)


def _describe_worker(state: WorkerState, monitor: LivenessMonitor) -> str:
    name = state.record.name if state.record else "an unknown worker"
    if state.has_ended:
        return f"{name}, whose process has ended"
    silent = f"{monitor.silent_seconds(state):.0f} s"
    if state.record is not None and state.record.is_stalled:
        return f"{name}, which stopped its heartbeat because its work stalled, {silent} ago"
    return f"{name}, whose last new heartbeat was {silent} ago"
