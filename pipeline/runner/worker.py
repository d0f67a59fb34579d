"""One rank of one stage: what every launcher starts, as ``python -m pipeline.runner.worker STAGE
RUN``.

With a third word, ``joined``, the worker joined a running stage, on any machine: no
orchestrator waits for it.

It reads the resolved recipe from the run folder and calls the stage. Its log is opened before
anything heavy is imported, so that a failing import is in the log too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

from launch.logs import LOG_FOLDER_VARIABLE, open_log, record_failure
from launch.processes.heartbeat import Heartbeat, exit_after_parent
from launch.processes.marked_processes import end_with_parent
from pipeline.runner.error_messages import error_message, is_for_the_user
from pipeline.runner.standard_streams import (
    open_closed_streams,
    outlive_readers,
    replace_unencodable,
)
from stages.freed_memory import keep_freed_memory

JOINED = "joined"
_SECONDS_TO_SAVE = 60.0  # after the parent ended


def main() -> int:
    """Run the stage; exit status 2 when what was asked cannot be done, 1 on any other failure."""
    stage, root, *joined = sys.argv[1:]
    # Without a launcher, as from a --dry-run's line, it is alone.
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    logs = Path(os.environ[LOG_FOLDER_VARIABLE])
    open_closed_streams()
    open_log(logs, rank)
    replace_unencodable()
    outlive_readers()
    keep_freed_memory()
    # Below torchrun that was killed, a rank would train on beside its successor: it ends at once.
    # Below a command that was killed, it may save.
    end_with_parent(signal.SIGKILL if "TORCHELASTIC_RUN_ID" in os.environ else signal.SIGTERM)
    exit_after_parent(_SECONDS_TO_SAVE)
    heartbeat = Heartbeat(rank)
    try:
        run_stage(stage, Path(root), rank, world_size, heartbeat, is_joined=joined == [JOINED])
    except Exception as error:
        if is_for_the_user(error):
            record_failure(logs, rank, error, is_users=True, message=error_message(error))
            return 2
        record_failure(logs, rank, error, is_users=False)
        return 1
    return 0


def run_stage(
    stage: str,
    root: Path,
    rank: int,
    world_size: int,
    heartbeat: Heartbeat,
    *,
    is_joined: bool,
) -> None:
    """Call the stage with its part of the recipe and its folders."""
    from pipeline.recipe.recipe import load_recipe
    from pipeline.runner.run_folder import RunFolder
    from pipeline.runner.stages.entrypoints import CALLS, RankContext
    from pipeline.runner.stages.stage_graph import stages_of

    run = RunFolder(root)
    recipe = load_recipe(run.recipe)
    (kind,) = (kind for kind in stages_of(recipe) if kind.name == stage)
    is_writer = rank == 0 and not kind.is_shards  # shards have claims of their own
    with (
        contextlib.nullcontext() if is_joined else run.ranked(),
        run.sole_writer(stage) if is_writer else contextlib.nullcontext(),
    ):
        context = RankContext(rank=rank, world_size=world_size, on_step=heartbeat.beat)
        CALLS[stage](recipe, run, context)


if __name__ == "__main__":
    sys.exit(main())
