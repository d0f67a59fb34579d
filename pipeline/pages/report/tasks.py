"""The downstream tasks a run's student was taught: scores beside chance and beside the same network
without pretraining, curves, calibration, and examples that went right and wrong.

Reads transfer/TASK/ or, of a run of all tasks, transfer/all/TASK/ (`scores.json`, `data.json`,
`outcomes.json`, `training/metrics.jsonl`); without one there is no section.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from pipeline.pages.boxes import cross, outline, picture_in_drawing
from pipeline.pages.charts import Series, line_chart
from pipeline.pages.html import h, shortened
from pipeline.pages.sections import Section, count, figure_list, percent, short, table
from pipeline.pages.thumbnails import thumbnail
from pipeline.runner.run_files import number, points, read_lines, read_object
from pipeline.runner.run_folder import RunFolder
from stages.picture import read_picture_file

ALL = "all"
PRETRAINED, NOT_PRETRAINED = "pretrained", "not_pretrained"
LONGEST_PX = 320
HEAD = ("score", "value", "not pretrained", "chance", "of", "reads the premise")


def tasks_section(run: RunFolder) -> Section | None:
    """A part a task; None where the run was taught none."""
    content = [part for name, folder in task_folders(run) for part in _task(run, name, folder)]
    if not content:
        return None
    return Section(name="tasks", title="Downstream tasks", content=tuple(content))


def task_folders(run: RunFolder) -> list[tuple[str, Path]]:
    """Each task that was taught, with its folder; of a task that was taught alone and with all, the
    folder of its own."""
    found = {}
    for path in sorted(run.transfer.glob(f"{ALL}/*/{PRETRAINED}/scores.json")):
        found[path.parent.parent.name] = path.parent
    for path in sorted(run.transfer.glob("*/scores.json")):
        name = path.parent.name
        if name != ALL and not name.startswith("evaluate"):
            found[name] = path.parent
    return sorted(found.items())


def _task(run: RunFolder, name: str, folder: Path) -> list[Element]:
    scores = read_object(folder / "scores.json")
    if folder.name == PRETRAINED:
        both = read_object(run.transfer / ALL / "scores.json")
        scores = {key: both.get(key, entry) for key, entry in scores.items()}
    rows = [row for key, entry in scores.items() if (row := _row(key, entry))]
    if not rows:
        return []
    outcomes = read_object(folder / "outcomes.json")
    charts = _charts(folder, outcomes)
    shown = [_example(entry) for entry in outcomes.get("examples", []) if isinstance(entry, dict)]
    return [
        h("h3", {"id": f"task-{name}"}, name),
        table(f"Scores of {name}", HEAD, rows),
        figure_list(_figures(folder, outcomes)),
        *([h("div", {"class": "columns"}, *charts)] if charts else []),
        *([h("div", {"class": _grid_class(shown)}, *shown)] if shown else []),
    ]


def _grid_class(figures: Sequence[Element]) -> str:
    """The style sheet's class of a grid of pictures: fewer a row where one is very wide."""
    sizes = [
        (image.get("width", ""), image.get("height", ""))
        for f in figures
        for image in f.iter("img")
    ]
    is_wide = any(int(width) > 2 * int(height) for width, height in sizes)
    return "pictures wide" if is_wide else "pictures"


def _row(name: str, entry: Any) -> tuple[str, ...] | None:
    if not isinstance(entry, dict) or (value := number(entry.get("value"))) is None:
        return None
    other, chance = number(entry.get(NOT_PRETRAINED)), number(entry.get("chance"))
    num = number(entry.get("num"))
    return (
        name,
        percent(value),
        "" if other is None else percent(other),
        "" if chance is None else percent(chance),
        "" if num is None else count(int(num)),
        "yes" if entry.get("text_premise") else "",
    )


def _figures(folder: Path, outcomes: dict[str, Any]) -> list[tuple[str, str]]:
    data = read_object(folder / "data.json")
    figures = []
    for key, said in (
        ("num_train", "training examples"),
        ("num_heldout", "scored examples"),
        ("best_step", "best step"),
    ):
        if (value := number(data.get(key))) is not None:
            figures.append((said, count(int(value))))
    left_out = data.get("left_out")
    for split, said in (("train", "training"), ("heldout", "scoring")):
        reasons = left_out.get(split) if isinstance(left_out, dict) else None
        for reason, value in reasons.items() if isinstance(reasons, dict) else ():
            figures.append((f"left out of {said}: {reason}", count(int(number(value) or 0))))
    if (error := number(outcomes.get("expected_calibration_error"))) is not None:
        figures.append(("calibration error", percent(error)))
    return figures


def _charts(folder: Path, outcomes: dict[str, Any]) -> list[Element]:
    """The loss, the scores of each validation, and how often the student is right when it is how
    sure."""
    lines = read_lines(folder / "training" / "metrics.jsonl")
    found = []
    if len(loss := points(lines, "loss")) > 1:
        series = [Series(name="loss", points=loss)]
        found.append(line_chart("Training loss", series, y_label="nats"))
    names = sorted({key for line in lines for key in line if key.startswith("validation/")})
    scores = [Series(name=n.partition("/")[2], points=points(lines, n)) for n in names]
    if any(len(one.points) > 1 for one in scores):
        found.append(line_chart("Held-out scores", scores, y_label="", is_share=True))
    bins = outcomes.get("calibration") or []
    pairs = [(number(b.get("confidence")), number(b.get("right"))) for b in bins]
    known = [(x, y) for x, y in pairs if x is not None and y is not None]
    if len(known) > 1:
        series = [
            Series(name="right", points=known),
            Series(name="as sure as right", points=[(0.0, 0.0), (1.0, 1.0)]),
        ]
        title, unit = "Calibration", "share right by confidence"
        found.append(line_chart(title, series, y_label=unit, is_share=True, x_label="confidence"))
    return found


def _example(entry: dict[str, Any]) -> Element:
    right, sure = number(entry.get("right")) or 0.0, number(entry.get("confidence"))
    verdict = h("b", {"class": "good"}, "✓ ") if right >= 0.5 else h("b", {"class": "bad"}, "✗ ")
    said = f"says “{shortened(str(entry.get('said')))}”"
    if sure is not None:
        said += f" ({percent(sure)} sure)"
    if right < 0.5:
        said += f", truth: “{shortened(str(entry.get('truth')))}”"
    elif right < 1:
        said += f" (worth {short(right)})"
    text = h("bdi", shortened(str(entry.get("text"))), " ")
    images = [_image(str(path), entry) for path in entry.get("images", [])]
    return h("figure", *images, h("figcaption", text, verdict, said))


def _image(path: str, entry: dict[str, Any]) -> Element:
    """The picture; with a cross and outlines where the answer was a place."""
    try:
        small = thumbnail(read_picture_file(Path(path)), longest_px=LONGEST_PX)
    except (OSError, ValueError):
        small = None
    if small is None:
        return h("span", {"class": "lost"}, "not readable")
    size = {"width": small.width, "height": small.height}
    point, boxes = entry.get("point"), entry.get("boxes")
    if not point or not boxes:
        about = {"src": small.uri, "alt": "The picture that is asked about", "loading": "lazy"}
        return h("img", {**about, **size})
    places = [_in_pixels(box, small.width, small.height) for box in boxes]
    return h(
        "svg",
        {
            "viewBox": f"0 0 {small.width} {small.height}",
            "role": "img",
            "aria-label": "The point that was given, a cross, and the true boxes, dashed",
        },
        picture_in_drawing(small.uri, small.width, small.height),
        *(outline(place, name) for name in ("true-under", "true") for place in places),
        *cross(_in_pixels(point, small.width, small.height), max(small.width, small.height) / 30),
    )


def _in_pixels(shares: Sequence[float], width: int, height: int) -> list[float]:
    """x, y, ... as shares of a picture, in its pixels."""
    return [share * (height if n % 2 else width) for n, share in enumerate(shares)]
