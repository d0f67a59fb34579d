"""Line charts and bars in the colours of the style sheet, for light and dark pages.

No script: the values of a step show as the browser's own tooltip. Axes begin at zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from boxless.errors import BoxlessError
from pipeline.pages.html import h
from pipeline.pages.sections import percent, short

WIDTH, HEIGHT = 360, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 10, 10, 36
_MOST_POINTS = 100
NUM_COLOURS = 6


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line: its name in the legend and its (step, value) points, steps rising."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class _Scale:
    x_end: float
    y_end: float

    def x(self, value: float) -> float:
        return round(_LEFT + value / self.x_end * (WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        share = min(value, self.y_end) / self.y_end
        return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    y_label: str,
    is_share: bool = False,
    x_label: str = "step",
) -> Element:
    """A figure: heading, legend with last values, chart. `is_share`: values 0 to 1, as percents.

    ValueError where no series has a point.
    """
    series = [Series(name=one.name, points=thinned(one.points)) for one in series if one.points]
    if not series:
        raise BoxlessError(f"{title}: got no points, expected at least one series with some")
    x_ticks = nice_ticks(max(x for one in series for x, _ in one.points))
    y_ticks = [0, 0.25, 0.5, 0.75, 1]
    if not is_share:
        y_ticks = nice_ticks(max(y for one in series for _, y in one.points))
    x_end = max(x for one in series for x, _ in one.points)
    scale = _Scale(x_end=x_end or 1.0, y_end=y_ticks[-1])
    format_value = percent if is_share else short
    drawing = h(
        "svg",
        {
            "viewBox": f"0 0 {WIDTH} {HEIGHT}",
            "role": "img",
            "aria-label": _description(series, format_value, x_label),
        },
        *_axes(scale, [x for x in x_ticks if x <= scale.x_end], y_ticks, is_share),
        _text((WIDTH + _LEFT) / 2, HEIGHT - 4, "middle", x_label),
        *(_line(one, scale, colour) for colour, one in enumerate(series)),
        *_tooltips(series, scale, format_value, x_label),
    )
    heading = h("h3", title, " ", h("small", y_label))
    return h("figure", {"class": "chart"}, heading, _legend(series, format_value), drawing)


def score_bar(value: float, chance: float | None) -> Element:
    """A bar from 0 to 100 % with a mark at chance; for the eye only, the number is beside it."""
    mark = h("i", {"class": "chance", "style": _left(chance)}) if chance else None
    bar = h("b", {"style": f"width:{100 * min(max(value, 0.0), 1.0):.1f}%"})
    return h("div", {"class": "bar", "aria-hidden": "true"}, bar, mark)


def _left(share: float) -> str:
    return f"left:{100 * min(max(share, 0.0), 1.0):.1f}%"


def nice_ticks(end: float) -> list[float]:
    """From 0 to `end` or just above, in steps of 1, 2, 2.5 or 5 times a power of ten."""
    if end <= 0:
        return [0.0, 1.0]
    power = 10 ** math.floor(math.log10(end / 5))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power * 5 >= end * 0.999)
    return [round(i * step, 12) for i in range(math.ceil(end / step - 1e-9) + 1)]


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most 100 points: means over stretches of equal numbers of points."""
    size = math.ceil(len(points) / _MOST_POINTS) or 1
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def _axes(
    scale: _Scale, x_ticks: Sequence[float], y_ticks: Sequence[float], is_share: bool
) -> list[Element]:
    found = []
    for value in y_ticks:
        y = scale.y(value)
        found.append(
            h("line", {"class": "rule", "x1": _LEFT, "x2": WIDTH - _RIGHT, "y1": y, "y2": y})
        )
        said = f"{100 * value:g}\N{NO-BREAK SPACE}%" if is_share else f"{value:g}"
        found.append(_text(_LEFT - 6, y + 4, "end", said))
    for value in x_ticks:
        at_end = value == x_ticks[-1] and scale.x(value) > WIDTH - 30
        x = WIDTH - _RIGHT if at_end else scale.x(value)
        found.append(_text(x, HEIGHT - 20, "end" if at_end else "middle", f"{value:,g}"))
    return found


def _text(x: float, y: float, anchor: str, text: str) -> Element:
    return h("text", {"x": x, "y": y, "text-anchor": anchor}, text)


def _line(series: Series, scale: _Scale, colour: int) -> Element:
    path = " ".join(f"{scale.x(x)},{scale.y(y)}" for x, y in series.points)
    return h("polyline", {"class": f"line c{colour % NUM_COLOURS}", "points": path})


def _tooltips(
    series: Sequence[Series], scale: _Scale, format_value: Callable[[float], str], x_label: str
) -> list[Element]:
    """A column a step that shows nothing but its values, when pointed at."""
    values: dict[float, list[str]] = {}
    for one in series:
        for x, y in one.points:
            values.setdefault(x, []).append(f"{one.name} {format_value(y)}")
    found, left = [], float(_LEFT)
    for x in sorted(values):
        right = scale.x(x)
        column = {
            "class": "hover",
            "x": left,
            "y": _TOP,
            "width": round(right - left, 1),
            "height": HEIGHT - _TOP - _BOTTOM,
        }
        found.append(h("rect", column, h("title", "\n".join([f"{x_label} {x:,g}", *values[x]]))))
        left = right
    return found


def _legend(series: Sequence[Series], format_value: Callable[[float], str]) -> Element:
    items = [
        h(
            "li",
            h("i", {"class": f"c{colour % NUM_COLOURS}"}),
            one.name,
            " ",
            h("b", format_value(one.points[-1][1])),
        )
        for colour, one in enumerate(series)
    ]
    return h("ul", {"class": "legend"}, *items)


def _description(
    series: Sequence[Series], format_value: Callable[[float], str], x_label: str
) -> str:
    """The chart in words, for those who hear the page."""
    said = (
        f"{one.name} goes from {format_value(one.points[0][1])} to {format_value(one.points[-1][1])}"
        for one in series
    )
    return f"{'; '.join(said)}, by {x_label} {series[0].points[-1][0]:,g}."
