"""``boxless status RUN``: a table of the progress of each stage; live while shards are written.

Below the table are the workers, on any machine, each with its shard.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from launch.backends import slurm_queue
from pipeline.recipe.recipe import Recipe, load_recipe
from pipeline.runner.launch_plan import submitted_jobs
from pipeline.runner.run_folder import RunError, RunFolder
from pipeline.runner.run_stages import plan_stage
from pipeline.runner.stages.figures import figures_of, in_words
from pipeline.runner.stages.stage_graph import StageKind, stages_of
from pipeline.runner.stages.state import read_done, read_started
from pipeline.runner.status.goodput import goodput_lines, read_goodput
from pipeline.units import seconds_in_words
from sharding.coordination.progress import ProgressReader, WorkProgress

_SECONDS_BETWEEN_LOOKS = 1.0
_MAX_LOOKS_IN_VAIN = 30
_NUM_NOTICES = 5


def status_table(run: RunFolder, progress: dict[str, WorkProgress] | None = None) -> Table:
    """A row a stage, with the work on shards as `progress` has it, else as it is seen now. RunError
    when there is no run in that folder."""
    recipe, is_busy = _recipe(run), run.is_busy()
    if progress is None:
        progress = _work(progress_readers(run)).progress
    table = Table(title=f"{recipe.name} in {run.root}", title_justify="left")
    for column in ("stage", "state", "time", "figures"):
        table.add_column(column)
    due: list[str] = []
    for kind in stages_of(recipe):
        of_stage = progress.get(kind.name)
        state = _state(run, recipe, kind, due, is_busy or bool(of_stage and of_stage.alive))
        record = read_done(run, kind) or read_started(run, kind)
        seconds = seconds_in_words(record.seconds) if record and record.seconds else ""
        figures = in_words(figures_of(run, kind)) if record else ""
        table.add_row(
            kind.name, state, seconds, escape(in_short(of_stage) if of_stage else figures)
        )
    return table


def progress_readers(run: RunFolder) -> dict[str, ProgressReader]:
    """{stage: reader of its progress} of the stages that make shards."""
    kinds = stages_of(_recipe(run))
    return {kind.name: ProgressReader(kind.folder(run)) for kind in kinds if kind.is_shards}


def show_status(run: RunFolder) -> None:
    """Print the table and the workers. In a terminal the workers are read again every second
    for as long as shards are made; Ctrl-C ends it. Workers of other machines are first watched for
    some seconds."""
    console, readers = Console(), progress_readers(run)
    found = {name: reader.watch() for name, reader in readers.items()}
    work = _Work({name: of_stage for name, of_stage in found.items() if of_stage is not None})
    console.print(status_table(run, work.progress))
    if console.is_terminal and (work.is_alive or (_is_making_shards(run) and run.is_busy())):
        with contextlib.suppress(KeyboardInterrupt):
            _show_live(run, readers, work, console)
            console.print(status_table(run))
        return
    for name, of_stage in work.progress.items():
        if of_stage.workers:
            console.print(workers_table(name, of_stage))
    for line in [*slurm_jobs(run), *(f"pretrain: {line}" for line in notices(run))]:
        console.print(line, markup=False, soft_wrap=True)
    goodput = read_goodput(run)
    for line in goodput_lines(goodput) if goodput else []:
        console.print(f"pretrain: {line}", markup=False, soft_wrap=True)


def slurm_jobs(run: RunFolder) -> list[str]:
    """A line for the Slurm job of each stage that is not done: what the controller says of it."""
    kinds = {kind.name: kind for kind in stages_of(_recipe(run))}
    jobs = {
        stage: job_id
        for stage, job_id in submitted_jobs(run).items()
        if stage in kinds and read_done(run, kinds[stage]) is None
    }
    states = slurm_queue.summary(list(jobs.values())) if jobs else {}
    unknown = "which this machine's Slurm does not know, or gives no answer about"
    return [
        f"{stage}: Slurm job {job_id}, {states.get(job_id, unknown)}"
        for stage, job_id in jobs.items()
    ]


def notices(run: RunFolder) -> list[str]:
    """The last words of ranks that train now, or were when they stopped: samples that they skipped,
    and who was at what when no data came. None once training is complete."""
    path = run.pretrain / "notices.log"
    kinds = {kind.name: kind for kind in stages_of(_recipe(run))}
    if not path.is_file() or read_done(run, kinds["pretrain"]) is not None:
        return []
    return path.read_text("utf-8", errors="replace").splitlines()[-_NUM_NOTICES:]


def _show_live(
    run: RunFolder, readers: dict[str, ProgressReader], work: _Work, console: Console
) -> None:
    """Until the stage is done, or no worker was active for a while: workers take some seconds to
    come, and an orchestrator that is about to end leaves none."""
    num_idle_looks = 0
    with Live(work, console=console, auto_refresh=False) as live:
        while _is_making_shards(run) and num_idle_looks < _MAX_LOOKS_IN_VAIN:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            work = _work(readers)
            num_idle_looks = 0 if work.is_alive else num_idle_looks + 1
            live.update(work, refresh=True)


def _is_making_shards(run: RunFolder) -> bool:
    """Whether a stage that makes shards was begun and has not ended."""
    kinds = stages_of(_recipe(run))
    return any(kind.is_shards and read_started(run, kind) is not None for kind in kinds)


def in_short(progress: WorkProgress) -> str:
    """``shards 3 done, 2 running, 7 not begun; pictures 1400 ok, 3 failed; 41.2/s, 4 min left``."""
    waiting = max(0, progress.num_shards - progress.num_done - progress.num_running)
    num_ok = progress.num_input_done - progress.num_failed
    parts = [
        f"shards {progress.num_done} done, {progress.num_running} running, {waiting} not begun",
        f"pictures {num_ok} ok, {progress.num_failed} failed",
    ]
    if progress.seconds_left is not None:
        parts.append(f"{progress.rate:.3g}/s, {seconds_in_words(progress.seconds_left)} left")
    return "; ".join(parts)


def workers_table(name: str, progress: WorkProgress) -> Table:
    """A row a worker of the stage ``name``, those that fell silent too."""
    table = Table(title=f"workers of {name}", title_justify="left")
    for column in ("worker", "shard", "pictures", "for", "pictures/s", "heartbeat"):
        table.add_column(column)
    for worker in progress.workers:
        heartbeat = f"{worker.silent_seconds:.0f} s ago"
        table.add_row(
            escape(worker.name),
            worker.tar or "[dim]none[/]",
            f"{worker.num_done}/{worker.num_inputs}" if worker.tar else "",
            seconds_in_words(worker.seconds) if worker.tar else "",
            f"{worker.rate:.3g}",
            heartbeat if worker.is_alive else f"[red]dead, {heartbeat}[/]",
        )
    return table


@dataclass(frozen=True)
class _Work:
    """What `show_status` keeps up to date below its table."""

    progress: dict[str, WorkProgress]

    @property
    def is_alive(self) -> bool:
        return any(of_stage.alive for of_stage in self.progress.values())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for name, of_stage in self.progress.items():
            yield Text(f"{name}: {in_short(of_stage)}")
            if of_stage.workers:
                yield workers_table(name, of_stage)


def _work(readers: dict[str, ProgressReader]) -> _Work:
    found = {name: reader.read() for name, reader in readers.items()}
    return _Work({name: of_stage for name, of_stage in found.items() if of_stage is not None})


def _recipe(run: RunFolder) -> Recipe:
    if not run.recipe.is_file():
        raise RunError(f"{run.root} is not a run folder: it has no {run.recipe.name}.")
    return load_recipe(run.recipe)


def _state(run: RunFolder, recipe: Recipe, kind: StageKind, due: list[str], is_busy: bool) -> str:
    """In a word or a line, with colours; a stage that is not done is added to ``due``."""
    plan = plan_stage(run, recipe, kind, due=due)
    if plan.action == "skip":
        return "[green]done[/]"
    due.append(kind.name)
    is_done = read_done(run, kind) is not None
    if plan.action == "start":
        return "[dim]not started[/]"
    if is_done:
        kept = "out of date" if plan.action == "redo" else "damaged"
        return f"[red]{kept}: {escape(plan.why)}[/]"
    return "[cyan]running[/]" if is_busy else "[yellow]stopped part-way[/]"
