"""Runs the ranks of one node to their end: passes signals on, notices failures, hangs and lost
nodes, and restarts ranks as long as training makes progress.

Two ways lead to a restart. Where the launcher restarts ranks itself (torchrun), the supervisor only
counts; where the launcher has ended, it is started again. What no restart can help (a recipe that
cannot be, a loss that is not finite) ends the job at once, and so do ``max_restarts`` restarts in a
row without a new step.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launch.environment import HEARTBEAT_FOLDER_VARIABLE, launch_environment
from launch.events import record_event
from launch.job import Job, LaunchError, NoProgressError, Stopped, UserError
from launch.logs import (
    LOG_FOLDER_VARIABLE,
    START_VARIABLE,
    Failure,
    read_failures,
    tail,
)
from launch.paths import JobPaths
from launch.processes.collectives import flight_recorder_variables
from launch.processes.heartbeat import Beat, num_starts, read_beats
from launch.processes.marked_processes import end_with_parent, kill_marked
from launch.processes.peers import Peers
from launch.processes.process import forwarded_signals, missing_command, state_of
from launch.processes.stalls import StallReports, log, stopped

_POLL_SECONDS = 0.25
_SHUTDOWN_SECONDS = 30.0
_SECONDS_BETWEEN_STARTS = 1.0
_SECONDS_BETWEEN_STEP_EVENTS = 30.0


@dataclass(frozen=True, kw_only=True)
class RestartPolicy:
    """When ranks are started again.

    max_restarts: in a row without a new step; 0 never starts anything again: ranks that are stopped
        or hang are only named then.
    hang_seconds: without a step for so long, ranks are ended and started again.
    kills_at_second_signal: whether a second SIGTERM or SIGINT ends the ranks at once (a person who
        presses Ctrl-C twice), or is one too many from a scheduler, which has SIGKILL for that.
    """

    max_restarts: int = 0
    hang_seconds: float = 600.0
    kills_at_second_signal: bool = True


class Supervisor:
    """The ranks of ``job`` on this node. ``peers`` watches the other nodes, where there are any."""

    def __init__(self, job: Job, policy: RestartPolicy, peers: Peers | None = None) -> None:
        self._job, self._policy, self._peers = job, policy, peers
        self._best_step, self._num_in_a_row = -1, 0
        self._cause = "the ranks ended"
        self._num_lost = 0
        self._lost: tuple[str, float] | None = None
        self._latest_step_at = time.monotonic()
        self._step_recorded_at: float | None = None

    def run(self, command: Callable[[], list[str]]) -> None:
        """Run the command that ``command`` gives, again at every start, until its ranks ended well.

        Raises Stopped, UserError, LaunchError or NoProgressError; see launch.job.
        """
        self._record("start")
        try:
            self._run(command)
        except Stopped:
            self._record("stop", step=self._best_step)
            raise
        except (UserError, LaunchError) as error:
            self._record("failure", cause=str(error).splitlines()[0], step=self._best_step)
            raise
        self._record("end", step=self._best_step)

    def _run(self, command: Callable[[], list[str]]) -> None:
        while True:
            start = _Start(self._job, command())
            try:
                again = start.kill if self._policy.kills_at_second_signal else _ignore
                with forwarded_signals(terminate=start.terminate, force_kill=again) as received:
                    returncode = self._watch(start, received)
            finally:
                start.end()
            if received:
                raise Stopped(received[0])
            if returncode == 0:
                return
            error = self._error(start, returncode)
            if isinstance(error, UserError) or self._policy.max_restarts == 0 or _ends(error):
                raise error
            self._count_restart(error)
            time.sleep(_SECONDS_BETWEEN_STARTS)

    def _watch(self, start: _Start, received: list[int]) -> int:
        """Until the launcher of this start has ended; its exit status."""
        num_counted = 1
        while True:
            try:
                return start.process.wait(_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                pass
            beats = read_beats(start.heartbeats)
            self._note_steps(beats)
            beats = [beat for beat in beats if beat.process_state not in "XZ"]
            if self._job.can_restart and not received:
                start.stalls.report(beats)
            if self._policy.max_restarts and not received:
                permanent = [f for f in start.failures() if f.is_permanent]
                if permanent:
                    return start.end_with(1)
                while num_counted < num_starts(start.heartbeats):
                    num_counted += 1
                    self._count_restart(self._cause_of_restart(start))
                self._check_peers(start, beats)
                self._end_stopped(start, beats)
                self._end_hung(start, beats)

    def _note_steps(self, beats: list[Beat]) -> None:
        step = max((beat.step for beat in beats), default=-1)
        if step > self._best_step:
            self._best_step, self._num_in_a_row = step, 0
            self._latest_step_at = time.monotonic()
            if self._lost is not None:
                cause, since = self._lost
                seconds = round(time.monotonic() - since, 1)
                self._record("recovered", cause=cause, lost_seconds=seconds, step=step)
                self._lost = None
            self._record_step(step)

    def _record_step(self, step: int) -> None:
        """The first step, and then one now and again: after the loss of this node they say when
        that was."""
        now, last = time.monotonic(), self._step_recorded_at
        if step > 0 and (last is None or now - last > _SECONDS_BETWEEN_STEP_EVENTS):
            self._record("first step" if last is None else "step", step=step)
            self._step_recorded_at = now

    def _count_restart(self, error: LaunchError) -> None:
        """NoProgressError when this restart would be one too many."""
        self._num_in_a_row += 1
        cause = self._cause if self._cause != "the ranks ended" else error.state
        self._cause = "the ranks ended"
        self._record("restart", cause=cause, step=self._best_step, in_a_row=self._num_in_a_row)
        self._lost = self._lost or (cause, self._latest_step_at)
        log(f"restart {self._num_in_a_row} after step {max(self._best_step, 0)}: {cause}")
        if self._num_in_a_row > self._policy.max_restarts:
            raise NoProgressError(
                f"{self._job.title}: {self._policy.max_restarts} restarts in a row without a new "
                f"step after step {max(self._best_step, 0)}; the last cause: {cause}",
                error.log,
                error.tail,
            )

    def _record(self, kind: str, **details: object) -> None:
        record_event(self._job.paths.events, kind, node=self._job.node_rank, **details)

    def _check_peers(self, start: _Start, beats: list[Beat]) -> None:
        if self._peers is None or self._peers.lost == self._num_lost:
            return
        self._num_lost = self._peers.lost
        self._cause = "a node was lost"
        log("a node was lost: its ranks' peers here start again")
        start.kill_ranks(beats)

    def _end_stopped(self, start: _Start, beats: list[Beat]) -> None:
        for beat in stopped(beats):
            self._cause = f"rank {beat.rank} was stopped (SIGSTOP)"
            log(f"rank {beat.rank} is ended")
            start.kill_ranks([beat])

    def _end_hung(self, start: _Start, beats: list[Beat]) -> None:
        """End ranks that make no step for ``hang_seconds``; a start's first steps (imports,
        compilation, the checkpoint) may take ten times as long."""
        if not beats:
            return
        silent = time.monotonic() - max(beat.since_seconds for beat in beats)
        is_training = any(beat.step > 0 for beat in beats)
        if silent > self._policy.hang_seconds * (1 if is_training else 10):
            self._cause = f"no step for {silent:.0f} s"
            log(f"no step for {silent:.0f} s: the ranks of this node are ended")
            start.kill_ranks(beats)

    def _cause_of_restart(self, start: _Start) -> LaunchError:
        """Why the launcher started the ranks again: a failure that one of them recorded, if any."""
        for failure in reversed(start.failures()):
            error = failure.as_error(self._job.title, self._job.paths)
            if isinstance(error, LaunchError):
                return error
        state = f"a rank on {socket.gethostname()} was killed, or another node started again"
        return LaunchError(state, self._job.paths.launcher_log(self._job.node_rank), "")

    def _error(self, start: _Start, returncode: int) -> UserError | LaunchError:
        paths = self._job.paths
        failures = start.failures()
        if failures:
            return failures[0].as_error(self._job.title, paths)
        log = paths.launcher_log(self._job.node_rank)
        if not tail(log).strip():  # the rank was the child itself, and was killed
            log = paths.rank_log(0)
        return LaunchError(f"{self._job.title}: {state_of(returncode)}", log, tail(log))


class _Start:
    """One start of the launcher's process and what belongs to it."""

    def __init__(self, job: Job, command: list[str]) -> None:
        self._job = job
        self._folder = tempfile.TemporaryDirectory(prefix="boxless-heartbeats-")
        self.heartbeats = Path(self._folder.name)
        self.id = f"{socket.gethostname()}-{os.getpid()}-{time.monotonic_ns()}"
        self.stalls = StallReports(job.title)
        self._at_the_end: list[Failure] | None = None
        env = (
            flight_recorder_variables(job.paths)
            | launch_environment(job.env)
            | {
                LOG_FOLDER_VARIABLE: str(job.log_folder.resolve()),
                HEARTBEAT_FOLDER_VARIABLE: self._folder.name,
                START_VARIABLE: self.id,
            }
        )
        sys.stdout.flush()
        with job.paths.launcher_log(job.node_rank).open("wb") as file:
            try:
                self.process = subprocess.Popen(
                    command, env=env, stderr=file, start_new_session=True, preexec_fn=_in_child
                )
            except FileNotFoundError as error:
                self._folder.cleanup()
                raise missing_command(command[0]) from error

    def failures(self) -> list[Failure]:
        """Failures of this start's own ranks, in order; without room in the log folder they are in
        this node's own."""
        if self._at_the_end is not None:
            return self._at_the_end
        places = (self._job.paths, JobPaths(self.heartbeats))
        found = [one for place in places for one in read_failures(place, start=self.id)]
        return sorted(found, key=lambda failure: failure.time_seconds)

    def terminate(self) -> None:
        """SIGTERM to the launcher, which passes it on: ranks save and end."""
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the launcher and everything below it, whatever sessions they have."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        kill_marked(START_VARIABLE, self.id)

    def kill_ranks(self, beats: list[Beat]) -> None:
        """SIGKILL to the ranks; the launcher stays to start them again."""
        for beat in beats:
            with contextlib.suppress(ProcessLookupError):
                os.kill(beat.pid, signal.SIGKILL)

    def end_with(self, returncode: int) -> int:
        """Terminate the launcher, and kill it when it takes too long; returns ``returncode``."""
        self.terminate()
        try:
            self.process.wait(_SHUTDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()
        return returncode

    def end(self) -> None:
        """Leave nothing of this start behind."""
        self.kill()
        self.process.wait()
        self._at_the_end = self.failures()
        self._folder.cleanup()


def _in_child() -> None:
    """SIGUSR1 is for who supervises: sent to every process of a job, it would kill the others."""
    end_with_parent()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _ignore() -> None:
    return


def _ends(error: LaunchError | UserError) -> bool:
    return isinstance(error, LaunchError) and error.is_permanent
