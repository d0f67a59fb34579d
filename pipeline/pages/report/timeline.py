"""The report's timeline: the duration of each stage.

Reads the record that each stage leaves.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element

from pipeline.pages.html import h
from pipeline.pages.sections import Section
from pipeline.recipe.recipe import Recipe
from pipeline.runner.run_folder import RunFolder
from pipeline.runner.stages.stage_graph import stages_of
from pipeline.runner.stages.state import read_done, read_started
from pipeline.units import seconds_in_words

_WHAT = {
    "ingest": "writes pictures and captions into tar shards",
    "teach": "trains the teacher, a Faster R-CNN",
    "distill": "runs the teacher over every picture once",
    "pretrain": "trains the student on whole pictures and captions",
    "finetune": "finetunes the student on a task",
    "evaluate": "scores the student on held-out pictures",
}


def timeline_section(run: RunFolder, recipe: Recipe) -> Section:
    """Every stage of the recipe, those that did not run yet too."""
    kinds = stages_of(recipe)
    seconds = {}
    for kind in kinds:
        record = read_done(run, kind) or read_started(run, kind)
        seconds[kind.name] = record.seconds if record else 0.0
    total, start = sum(seconds.values()), 0.0
    rows = []
    for kind in kinds:
        state = "" if read_done(run, kind) else "not run yet"
        if not state or read_started(run, kind):
            state = seconds_in_words(seconds[kind.name]) + (", not finished" if state else "")
        rows.append(_row(kind.name, state, start, seconds[kind.name], total))
        start += seconds[kind.name]
    whole = h("p", {"class": "note"}, "In all ", h("b", seconds_in_words(total)), " of work.")
    content = (h("ol", {"class": "timeline"}, *rows), whole)
    return Section(name="timeline", title="Stages", content=content)


def _row(name: str, state: str, start: float, seconds: float, total: float) -> Element:
    style = ""
    if seconds:
        style = f"left:{100 * start / total:.2f}%;width:{100 * seconds / total:.2f}%"
    bar = h("span", {"class": "track", "aria-hidden": "true"}, h("b", {"style": style}))
    return h(
        "li",
        {"class": None if seconds else "waits"},
        h("span", {"class": "stage"}, h("b", name), " ", h("small", _WHAT[name])),
        bar,
        h("span", {"class": "time"}, state),
    )
