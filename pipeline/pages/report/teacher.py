"""The report's teacher section: its training, and its boxes on held-out pictures.

Reads teacher/metrics.jsonl, teacher/scores.json and the object shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

from pipeline.pages.boxes import boxed_picture
from pipeline.pages.charts import Series, line_chart, score_bar
from pipeline.pages.html import h
from pipeline.pages.report.data import read_catalog_or_none
from pipeline.pages.sections import Section, count, figure_list, missing, percent
from pipeline.pages.thumbnails import Pictures, grid_class
from pipeline.runner.run_files import number, points, read_lines, read_object
from pipeline.runner.run_folder import RunFolder
from pipeline.units import seconds_in_words

_NUM_PICTURES = 8
_MOST_LABELS = 16
_LOSSES = {
    "objectness": "objectness",
    "anchor_box": "anchor boxes",
    "label": "label",
    "box": "boxes",
    "attribute": "attribute",
}


def teacher_section(run: RunFolder, pictures: Pictures) -> Section:
    """Losses, figures, average precision by label, and boxes; a word for what is not there."""
    scores = read_object(run.teacher / "scores.json")
    columns = [_losses(run), _figures(scores), _by_label(scores)]
    shown = [column for column in columns if column is not None]
    if not shown:
        shown = [missing("No teacher was trained in this run yet, or an existing one is used.")]
    content = (h("div", {"class": "columns"}, *shown), *_boxes(run, pictures))
    return Section(name="teacher", title="Teacher", content=content)


def _losses(run: RunFolder) -> Element | None:
    lines = read_lines(run.teacher / "metrics.jsonl")
    series = [Series(name=said, points=points(lines, name)) for name, said in _LOSSES.items()]
    if not any(one.points for one in series):
        return None
    return line_chart("The teacher's losses", series, y_label="cross entropy, L1")


def _figures(scores: dict[str, Any]) -> Element | None:
    found: list[tuple[str, str]] = []
    for name, said in (("ap50", "AP50"), ("attribute_accuracy", "attributes right")):
        entry = scores.get(name)
        value = number(entry.get("value")) if isinstance(entry, dict) else None
        if value is not None:
            found.append((said, percent(value)))
    for name, said in (("num_pictures", "held-out pictures"), ("num_objects", "objects in them")):
        if (value := number(scores.get(name))) is not None:
            found.append((said, count(int(value))))
    if (value := number(scores.get("seconds"))) is not None:
        found.append(("time to train", seconds_in_words(value)))
    return figure_list(found) if found else None


def _by_label(scores: dict[str, Any]) -> Element | None:
    by_label = scores.get("ap50_by_label")
    values = {
        str(label): value
        for label, entry in (by_label.items() if isinstance(by_label, dict) else ())
        if (value := number(entry)) is not None
    }
    if not values:
        return None
    ranked = sorted(values.items(), key=lambda pair: -pair[1])
    title = "AP50 by label"
    if len(ranked) > _MOST_LABELS:
        half = _MOST_LABELS // 2
        ranked = ranked[:half] + ranked[-half:]
        title = f"AP50 by label, the {half} best and the {half} worst of {len(values)}"
    items = [
        h("li", h("span", label), score_bar(value, None), h("b", percent(value)))
        for label, value in ranked
    ]
    return h("div", {"class": "chart"}, h("h3", title), h("ul", {"class": "labels"}, *items))


def _boxes(run: RunFolder, pictures: Pictures) -> Sequence[Element]:
    catalog = read_catalog_or_none(run.objects)
    if catalog is None:
        return [missing("No objects yet: distill has not finished.")]
    samples = [sample for sample in pictures.first(_NUM_PICTURES) if sample.objects is not None]
    figures = [boxed_picture(sample, catalog.metadata) for sample in samples]
    drawn = [figure for figure in figures if figure is not None]
    if not drawn:
        return [missing("No held-out picture can be drawn.")]
    knows_truth = any(sample.info.get("truth", {}).get("boxes") for sample in samples)
    note = (
        "The first held-out pictures, each with at most eight objects of the highest scores. Where "
        "the teacher reports several labels for one place, the one of the highest score is drawn; "
        "the student learns from all of them. The percentage is the teacher's score."
    )
    if knows_truth:
        note += " Dashed: the true boxes. A cross: no true object of that label is there."
    return [
        h("h3", "Boxes on held-out pictures"),
        h("p", {"class": "note"}, note),
        h("div", {"class": grid_class("pictures", pictures)}, *drawn),
    ]
