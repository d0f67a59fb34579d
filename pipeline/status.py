"""``boxless status RUN``: how far each stage of a run is, in a table."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.figures import figures_of, in_words, seconds_in_words
from pipeline.conduct import plan_stage
from pipeline.recipe import Recipe, load_recipe
from pipeline.run_folder import RunError, RunFolder
from pipeline.stage_kinds import StageKind, stage_kinds
from pipeline.stage_records import read_done, read_started


def status_table(run: RunFolder) -> Table:
    """The table. RunError when there is no run in that folder."""
    if not run.recipe.is_file():
        raise RunError(f"{run.root} is not a run folder: it has no {run.recipe.name}.")
    recipe, is_busy = load_recipe(run.recipe), run.is_busy()
    table = Table(title=f"{recipe.name} in {run.root}", title_justify="left")
    for column in ("stage", "state", "time", "figures"):
        table.add_column(column)
    due: list[str] = []
    for kind in stage_kinds(recipe):
        state = _state(run, recipe, kind, due, is_busy)
        record = read_done(run, kind) or read_started(run, kind)
        seconds = seconds_in_words(record.seconds) if record and record.seconds else ""
        figures = figures_of(run, kind) if record else {}
        table.add_row(kind.name, state, seconds, escape(in_words(figures)))
    return table


def show_status(run: RunFolder) -> None:
    """Print the table."""
    Console().print(status_table(run))


def _state(
    run: RunFolder, recipe: Recipe, kind: StageKind, due: list[str], is_busy: bool
) -> str:
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
