"""``boxless status RUN``: how far each stage of a run is, in a table."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from pipeline.figures import figures_of, in_words, seconds_in_words
from pipeline.recipe import load_recipe
from pipeline.run_folder import RunError, RunFolder
from pipeline.stage_kinds import StageKind, stage_kinds
from pipeline.stage_records import faults, read_done, read_started


def status_table(run: RunFolder) -> Table:
    """The table. RunError when there is no run in that folder."""
    if not run.recipe.is_file():
        raise RunError(f"{run.root} is not a run folder: it has no {run.recipe.name}.")
    recipe, is_busy = load_recipe(run.recipe), run.is_busy()
    table = Table(title=f"{recipe.name} in {run.root}", title_justify="left")
    for column in ("stage", "state", "time", "figures"):
        table.add_column(column)
    for kind in stage_kinds(recipe):
        table.add_row(kind.name, *_row(run, kind, is_busy))
    return table


def show_status(run: RunFolder) -> None:
    """Print the table."""
    Console().print(status_table(run))


def _row(run: RunFolder, kind: StageKind, is_busy: bool) -> tuple[str, str, str]:
    """State, time and figures."""
    done, started = read_done(run, kind), read_started(run, kind)
    if done is not None:
        wrong = faults(run, kind, done)
        state = f"[red]damaged: {wrong[0]}[/]" if wrong else "[green]done[/]"
        return state, seconds_in_words(done.seconds), in_words(done.figures)
    if started is None:
        return "[dim]not started[/]", "", ""
    state = "[cyan]running[/]" if is_busy else "[yellow]stopped part-way[/]"
    seconds = seconds_in_words(started.seconds) if started.seconds else ""
    return state, seconds, in_words(figures_of(run, kind))
