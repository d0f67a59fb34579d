"""The interface between launchers and the rest: a job, and its result.

Each back end is a module of ``launch.backends`` with two functions:

    command(job, config) -> list[str]    pure: what will be run, for ``--dry-run`` and for tests
    run(job, config) -> None             runs it to the end

``run`` returns when every rank ended well, raises LaunchError when one did not, and raises Stopped
when this process got SIGTERM or SIGINT and had passed it on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from boxless.errors import BoxlessError
from launch.paths import JobPaths

EXIT_NO_PROGRESS = 93
"""Exit status of a job whose restarts made no new step: to start it again would not help."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One stage's processes.

    title: short, for queues and messages, as in ``toy-pretrain``: letters, digits, ``.``, ``_``,
        ``-``.
    module, args: every rank runs ``python -m MODULE ARGS...`` and learns its rank from RANK,
        LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in its environment.
    env: variables laid over this process's own.
    log_folder: ``rank-N.log`` of each rank and ``launcher-NODE.log`` of what started them stand
        here; the ranks learn it from LOG_FOLDER_VARIABLE.
    node_rank: which node starts this part of the job; the others share its log folder.
    is_elastic: its ranks share work by claims and need not know of each other: any number may
        come, and the loss of one ends no other.
    can_restart: its ranks continue from a checkpoint, so they may be started again after a failure.
    join_seconds: how long nodes wait for each other.
    preload: modules that its ranks import anyway. Where ranks may be started again, they are forks
        of a process that has them already.
    """

    title: str
    module: str
    args: tuple[str, ...]
    log_folder: Path
    env: dict[str, str] = field(default_factory=dict)
    node_rank: int = 0
    is_elastic: bool = False
    can_restart: bool = False
    join_seconds: int = 1800
    preload: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.title):
            raise UserError(
                f"the job's name is {self.title!r}; expected letters, digits, '.', '_' and '-', a "
                "letter or digit first: change the recipe's name."
            )

    @property
    def paths(self) -> JobPaths:
        """Every path of the job."""
        return JobPaths(self.log_folder)


class LaunchError(BoxlessError):
    """A rank or the launcher itself failed: what state it ended in, and the end of its log.
    ``is_permanent``: it would fail in the same way again."""

    def __init__(self, state: str, log: Path, tail: str, *, is_permanent: bool = False) -> None:
        super().__init__(f"{state}\n{tail}\n(log: {log})" if tail else f"{state} (log: {log})")
        self.state, self.log, self.tail, self.is_permanent = state, log, tail, is_permanent


class NoProgressError(LaunchError):
    """Ranks were started again as often as is allowed, and made no new step."""

    def __init__(self, state: str, log: Path, tail: str) -> None:
        super().__init__(state, log, tail, is_permanent=True)


class UserError(BoxlessError):
    """A rank ended because what it was asked cannot be done; the message says what to change."""


class Stopped(Exception):
    """This process got SIGTERM or SIGINT; it passed it on, and its processes have ended."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number
