"""The downstream tasks a run's student was taught: each score beside chance, and some predictions.

Reads transfer/TASK/ (`scores.json`, `data.json`, `predictions.jsonl`); without one there is no
section.
"""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree.ElementTree import Element

from pipeline.pages.html import h, shortened
from pipeline.pages.report.sections import Section, count, figure_list, percent, table
from pipeline.runner.run_files import number, read_lines, read_object
from pipeline.runner.run_folder import RunFolder

NUM_SHOWN = 6
NOT_TASKS = ("evaluate", "truth")


def tasks_section(run: RunFolder) -> Section | None:
    """A table of scores a task; None where the run has none."""
    folders = [p.parent for p in sorted(run.transfer.glob("*/scores.json"))]
    content = [part for f in folders if f.name not in NOT_TASKS for part in _task(f)]
    if not content:
        return None
    return Section(name="tasks", title="Downstream tasks", content=tuple(content))


def _task(folder: Path) -> list[Element]:
    scores = read_object(folder / "scores.json")
    rows = []
    for name, entry in scores.items():
        if not isinstance(entry, dict) or (value := number(entry.get("value"))) is None:
            continue
        chance, num = number(entry.get("chance")), number(entry.get("num"))
        rows.append(
            (
                name,
                percent(value),
                "" if chance is None else percent(chance),
                "" if num is None else count(int(num)),
                "yes" if entry.get("text_premise") else "",
            )
        )
    if not rows:
        return []
    data = read_object(folder / "data.json")
    figures = []
    for key, said in (
        ("num_train", "training examples"),
        ("num_heldout", "scored examples"),
        ("best_step", "best step"),
    ):
        if (value := number(data.get(key))) is not None:
            figures.append((said, count(int(value))))
    head = ("score", "value", "chance", "of", "reads the premise")
    lines = [line for line in read_lines(folder / "predictions.jsonl") if "prediction" in line]
    shown = [
        h("li", f"{line.get('id')}: {shortened(json.dumps(line['prediction']))}")
        for line in lines[:NUM_SHOWN]
    ]
    return [
        h("h3", folder.name),
        table(f"Scores of {folder.name}", head, rows),
        figure_list(figures),
        h("ul", *shown),
    ]
