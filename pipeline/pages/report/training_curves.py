"""The report's training curves: losses, accuracies and speed over the steps.

Reads pretrain/metrics.jsonl, where an objective's figures are called OBJECTIVE/FIGURE.
"""

from __future__ import annotations

import statistics
from typing import Any

from pipeline.pages.charts import Series, line_chart
from pipeline.pages.html import h
from pipeline.pages.sections import Section, count, figure_list, missing, percent, short
from pipeline.runner.run_files import number, points, read_lines
from pipeline.runner.run_folder import RunFolder

_OBJECTIVES = {
    "itc": "image-text contrastive learning: which text of the micro-batch fits which picture?",
    "itm": "image-text matching: do this picture and this text belong together?",
    "mlm": "masked language modelling: which word is masked?",
    "omvm": "object-guided masked vision modelling: what did the teacher detect at the masked cells?",
    "pra": "phrase-region alignment: which cells does a phrase mean?",
    "mvm": "masked vision modelling: which code of the visual dictionary is masked?",
}
_HELD_OUT = "validation/"
_OF_CODES = ("/perplexity", "/dead_codes")


def learning_section(run: RunFolder) -> Section:
    """Charts, what each objective asks, and speed; a word before the first report."""
    lines = read_lines(run.pretrain / "metrics.jsonl")
    total = Series(name="total", points=points(lines, "loss"))
    every = {name for line in lines for name in line if "/" in name}
    names = sorted(name for name in every if not name.startswith(_HELD_OUT))
    held_out = sorted(every.difference(names))
    losses = [_series(lines, name) for name in names if name.endswith("/loss")]
    shares = [_series(lines, name) for name in names if name.endswith("accuracy")]
    held_losses = [_series(lines, name) for name in held_out if name.endswith("loss")]
    recalls = [_series(lines, name) for name in held_out if name.endswith("_r1")]
    codes = [_series(lines, name) for name in names if name.endswith(_OF_CODES)]
    charts = [
        line_chart(title, series, y_label=unit, is_share=unit == "share right")
        for title, series, unit in (
            ("Total loss", [total], "weighted sum"),
            ("Loss of each objective", losses, "nats"),
            ("Accuracy in training", shares, "share right"),
            ("Losses on held-out pictures", held_losses, "nats"),
            ("Retrieval among held-out pictures, R@1", recalls, "share right"),
            ("Visual dictionary", codes, "codes"),
        )
        if any(one.points for one in series)
    ]
    if not charts:
        empty = missing("No curves yet: pretrain has not reported a step.")
        return Section(name="learning", title="Training curves", content=(empty,))
    objectives = {name.split("/")[0] for name in names}
    asked = [
        h("div", h("dt", name), h("dd", words))
        for name, words in _OBJECTIVES.items()
        if name in objectives
    ]
    return Section(
        name="learning",
        title="Training curves",
        content=(
            h("div", {"class": "columns"}, *charts),
            figure_list(_speed(lines)),
            h("dl", {"class": "asked"}, *asked),
        ),
    )


def _series(lines: list[dict[str, Any]], name: str) -> Series:
    """`itm/loss` is called itm, `omvm/label_accuracy` omvm label, `validation/itm/loss` itm."""
    objective, _, figure = name.removeprefix(_HELD_OUT).partition("/")
    figure = figure.removesuffix("loss").removesuffix("accuracy").strip("_").replace("_", " ")
    return Series(name=f"{objective} {figure}".strip(), points=points(lines, name))


def _speed(lines: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Medians over the reports, as the first one holds the start."""

    def median(name: str) -> float | None:
        values = [value for line in lines if (value := number(line.get(name))) is not None]
        return statistics.median(values) if values else None

    last = lines[-1]
    found: list[tuple[str, str]] = []
    for name, said in (("step", "steps"), ("pictures", "pictures seen")):
        if (value := number(last.get(name))) is not None:
            found.append((said, count(int(value))))
    if (value := number(last.get("epoch"))) is not None:
        found.append(("epochs", short(value)))
    if (value := median("step_seconds")) is not None:
        found.append(("a step takes", f"{short(value)} s"))
    if (value := median("pictures_per_second")) is not None:
        found.append(("pictures a second", short(value)))
    if (value := median("model_tflops")) is not None:
        found.append(("TFLOP a second", short(value)))
    if (value := median("mfu")) is not None:
        found.append(("share of the devices' peak (MFU)", percent(value)))
    if (value := median("data_wait_share")) is not None:
        found.append(("of it waiting for data", percent(value)))
    return found
