"""Histograms and ranked bars in the colours of the style sheet.

No script: what a column stands for shows as the browser's own tooltip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from pipeline.pages.charts import nice_ticks, score_bar
from pipeline.pages.html import h
from pipeline.pages.sections import count, percent

_WIDTH, _HEIGHT, _BELOW = 330, 128, 20
_MOST_BINS = 24
_MOST_TICKS = 6
_TICK_PX = 40


@dataclass(frozen=True)
class Bin:
    """A column: what it stands for in words, how many there are, the number at its left edge."""

    name: str
    number: int
    start: float


def count_bins(counts: Counter[int]) -> list[Bin]:
    """Columns for {whole number: times}, from 0; each of one number where that makes few enough,
    else of as many as a round step has."""
    end = max(counts, default=0)
    step = 1
    while (end // step) + 1 > _MOST_BINS:
        step = next(size for size in _round_steps() if size > step)
    found = []
    for low in range(0, end + 1, step):
        number = sum(counts[value] for value in range(low, low + step))
        name = str(low) if step == 1 else f"{low} to {low + step - 1}"
        found.append(Bin(name, number, low))
    return found


def _round_steps() -> list[int]:
    return [size * 10**power for power in range(9) for size in (1, 2, 5)]


def score_bins(numbers: Sequence[int]) -> list[Bin]:
    """Columns of equal width for scores from 0 to 1."""
    width = 1 / len(numbers)
    return [
        Bin(f"{place * width:.2f} to {(place + 1) * width:.2f}", number, place * width)
        for place, number in enumerate(numbers)
    ]


def histogram(title: str, bins: Sequence[Bin], *, unit: str, end: float) -> Element:
    """A figure of columns; `unit` is what they count, `end` the number at the last one's right."""
    top = nice_ticks(max((one.number for one in bins), default=0))[-1]
    step = _WIDTH / max(1, len(bins))
    shapes = [h("line", {"class": "rule", "x1": 0, "x2": _WIDTH, "y1": _HEIGHT, "y2": _HEIGHT})]
    for place, one in enumerate(bins):
        tall = round(one.number / top * _HEIGHT, 1)
        left, wide = round(place * step, 1), round(step - min(2.0, step / 4), 1)
        if one.number:
            bar = {
                "class": "column",
                "x": left,
                "width": wide,
                "y": round(_HEIGHT - max(tall, 1.5), 1),
                "height": max(tall, 1.5),
            }
            shapes.append(h("rect", bar))
        whole = {"class": "hover", "x": left, "y": 0, "width": round(step, 1), "height": _HEIGHT}
        shapes.append(h("rect", whole, h("title", f"{one.name}: {one.number:,} {unit}")))
    shapes += _ticks(bins, end, step)
    most = max(bins, key=lambda one: one.number, default=None)
    said = f"{title}; most, {most.number:,} {unit}, at {most.name}" if most else title
    size = {"viewBox": f"0 0 {_WIDTH} {_HEIGHT + _BELOW}", "role": "img", "aria-label": said}
    return h("div", {"class": "chart"}, h("h3", title), h("svg", size, *shapes))


def _ticks(bins: Sequence[Bin], end: float, step: float) -> list[Element]:
    """Numbers below some columns: in the middle of one that stands for one number, else at its left
    edge."""
    stride = -(-len(bins) // _MOST_TICKS) if bins else 1
    single = len(bins) > 1 and bins[1].start == 1 and end == len(bins)
    found = []
    for place in range(0, len(bins), stride):
        x = (place + 0.5) * step if single else place * step
        if not single and x > _WIDTH - _TICK_PX:
            continue  # the end is there
        anchor = "middle" if single else "start" if place == 0 else "middle"
        found.append(_text(x, anchor, f"{bins[place].start:g}"))
    if not single:
        found.append(_text(_WIDTH, "end", f"{end:g}"))
    return found


def _text(x: float, anchor: str, text: str) -> Element:
    place = {"x": round(x, 1), "y": _HEIGHT + 15, "text-anchor": anchor}
    return h("text", place, text)


def ranked(title: str, pairs: Sequence[tuple[str, int]], *, total: int) -> Element:
    """Names with bars and numbers; `total` is what their shares are of."""
    most = max((number for _, number in pairs), default=1)
    items = [
        h(
            "li",
            {"title": f"{name}: {count(number)}, {percent(number / total)}"},
            h("span", {"dir": "auto"}, name),
            score_bar(number / most, None),
            h("b", count(number)),
        )
        for name, number in pairs
    ]
    return h("div", {"class": "chart"}, h("h3", title), h("ul", {"class": "labels"}, *items))
