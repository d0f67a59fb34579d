"""The contact sheet of `boxless view`: a PNG of small pictures with boxes and a summary. Drawn by
matplotlib.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.pages.histograms import Bin, count_bins, score_bins
from pipeline.pages.html import shortened
from pipeline.pages.palette import colour
from pipeline.pages.shards.counts import Counts, Losses, commonest
from pipeline.pages.shards.phrases import similarity
from pipeline.pages.shards.picture_svg import NUM_NAMED, NUM_TAGGED, is_dashed, tag_texts
from pipeline.pages.shards.sample_view import Box, Caption, Mark, Scene
from pipeline.pages.shards.shard_browser import Broken, ShardBrowser
from pipeline.pages.shards.summary_text import (
    head_line,
    objects_in_words,
    reasons,
    shard_figures,
    title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST_PX = 640
"""The longest side of the pictures as they are read; on the sheet they are smaller."""

_DPI = 72  # a point is a pixel
_TILE_PX, _PICTURE_PX = 428, 330
_GAP_PX, _MARGIN_PX, _PADDING_PX = 14, 24, 10
_MOST_COLUMNS = 4
_TITLE_PX, _LETTERS_PX, _LINE_PX, _KEY_PX = 24, 12, 17, 24
_LETTER_PX = 6.6  # the mean width of a letter of that size
_CHART_PX = (300, 110)
_TAG_PADDING_PX = 2
_MOST_OBJECT_LINES, _MOST_CAPTIONS, _LONGEST_CAPTION, _LONGEST_KEY = 5, 2, 200, 28
_MOST_LABELS, _MOST_REASONS = 8, 3
_GROUND, _CARD, _INK, _QUIET, _RULE = "#f7f7f5", "#ffffff", "#1d1e24", "#5d606b", "#d8d8d6"
_ACCENT, _BAD, _TRACK = "#2456c4", "#b3261e", "#e9eaee"


@dataclass(frozen=True, kw_only=True)
class _Line:
    text: str
    colour: str = _INK


@dataclass(frozen=True, kw_only=True)
class _Tile:
    """The content of one field of the sheet; `scene` is None for a damaged sample."""

    key: str
    facts: str
    scene: Scene | None
    size_px: tuple[int, int]
    lines: list[_Line]

    @property
    def height_px(self) -> int:
        return 3 * _PADDING_PX + _KEY_PX + self.size_px[1] + _LINE_PX * len(self.lines)


def sheet_png(
    browser: ShardBrowser, shown: Sequence[Scene | Broken], counts: Counts, losses: Losses
) -> bytes:
    """The sheet as a PNG: a head, then the pictures in rows."""
    from matplotlib.figure import Figure

    tiles = [_broken_tile(one) if isinstance(one, Broken) else _tile(one) for one in shown]
    num_columns = max(2, min(_MOST_COLUMNS, len(tiles)))
    rows = [tiles[start : start + num_columns] for start in range(0, len(tiles), num_columns)]
    width = 2 * _MARGIN_PX + num_columns * (_TILE_PX + _GAP_PX) - _GAP_PX
    lines = _head_lines(browser, counts, losses, width - 2 * _MARGIN_PX)
    charts = _charts(counts)
    head_px = 2 * _TITLE_PX + _LINE_PX * len(lines) + bool(charts) * (_CHART_PX[1] + 40)
    heights = [max(tile.height_px for tile in row) for row in rows]
    height = 2 * _MARGIN_PX + head_px + sum(heights) + _GAP_PX * len(rows)
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=_GROUND)
    sheet = _Sheet(figure, width, height)
    _draw_head(sheet, title(browser), lines, charts)
    top = _MARGIN_PX + head_px
    for row, high in zip(rows, heights):
        for column, tile in enumerate(row):
            _draw_tile(sheet, tile, _MARGIN_PX + column * (_TILE_PX + _GAP_PX), top, high)
        top += high + _GAP_PX
    out = io.BytesIO()
    with warnings.catch_warnings():  # letters that the font lacks are drawn as boxes
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        figure.savefig(out, format="png", dpi=_DPI, facecolor=_GROUND)
    return out.getvalue()


class _Sheet:
    """A figure of `width` x `height` pixels, addressed from its upper left corner."""

    def __init__(self, figure: Figure, width: int, height: int) -> None:
        self._figure, self._width, self._height = figure, width, height

    def axes(self, left: int, top: int, width: int, height: int) -> Axes:
        """An empty panel there."""
        low = self._height - top - height
        place = (left / self._width, low / self._height, width / self._width, height / self._height)
        axes = self._figure.add_axes(place)
        axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
        for spine in axes.spines.values():
            spine.set_visible(False)
        return axes

    @property
    def inner_width(self) -> int:
        """Without the margins."""
        return self._width - 2 * _MARGIN_PX


def _write(
    panel: Axes, x: float, y: float, text: str, colour: str = _INK, *, size_px: int = _LETTERS_PX
) -> None:
    """A line of text whose upper left corner is at `x`, `y`; cut off at the panel's edge."""
    panel.text(
        x,
        y,
        _printable(text),
        color=colour,
        fontsize=size_px,
        va="top",
        clip_on=True,
        parse_math=False,
    )


def _printable(text: str) -> str:
    spaced = (" " if letter.isspace() else letter for letter in text)
    return "".join(letter if letter.isprintable() else "?" for letter in spaced)


def _wrapped(text: str, width_px: float, colour: str = _INK) -> list[_Line]:
    found = textwrap.wrap(_printable(text), int(width_px / _LETTER_PX))
    return [_Line(text=line, colour=colour) for line in found]


def _head_lines(
    browser: ShardBrowser, counts: Counts, losses: Losses, width_px: int
) -> list[_Line]:
    figures = "    ".join(
        f"{name} {value}" for name, value in shard_figures(browser, counts, losses)
    )
    lines = [*_wrapped(head_line(browser, counts), width_px, _QUIET), *_wrapped(figures, width_px)]
    if losses.num_failed:
        common = reasons(losses).most_common(_MOST_REASONS)
        listed = "; ".join(f"{reason} ({number})" for reason, number in common)
        lines += _wrapped(f"failed: {listed or 'reasons not read'}", width_px, _BAD)
    for warning in browser.words:
        lines += _wrapped(warning, width_px, _BAD)
    if counts.labels:
        pairs = commonest(counts.labels, _MOST_LABELS)
        listed = ", ".join(f"{name.split(',')[0]} {number:,}" for name, number in pairs)
        lines += _wrapped(f"most frequent: {listed}", width_px)
    return lines


def _charts(counts: Counts) -> list[tuple[str, list[Bin]]]:
    """Titles and columns of the histograms; none where no objects are known."""
    if not counts.a_picture:
        return []
    charts = [("objects a picture", count_bins(counts.a_picture))]
    if counts.scores.any():
        charts.append(("scores", score_bins(counts.scores.tolist())))
    return charts


def _draw_head(
    sheet: _Sheet, name: str, lines: Sequence[_Line], charts: Sequence[tuple[str, list[Bin]]]
) -> None:
    height = 2 * _TITLE_PX + _LINE_PX * len(lines)
    panel = sheet.axes(_MARGIN_PX, _MARGIN_PX, sheet.inner_width, height)
    panel.set_facecolor(_GROUND)
    _write(panel, 0, 0, name, size_px=_TITLE_PX)
    for number, line in enumerate(lines):
        _write(panel, 0, 1.5 * _TITLE_PX + number * _LINE_PX, line.text, line.colour)
    for place, (heading, bins) in enumerate(charts):
        left = _MARGIN_PX + place * (_CHART_PX[0] + 40)
        chart = sheet.axes(left, _MARGIN_PX + height, *_CHART_PX)
        chart.set(xlim=(-0.5, len(bins) - 0.5), ylim=(0, max(1, *(one.number for one in bins))))
        chart.bar(range(len(bins)), [one.number for one in bins], color=_ACCENT, width=0.9)
        chart.set_title(heading, fontsize=_LETTERS_PX, color=_QUIET, loc="left", pad=2)
        ends = [bins[0].name.split(" to ")[0], bins[-1].name.split(" to ")[-1]]
        chart.set_xticks([0, len(bins) - 1], ends, fontsize=_LETTERS_PX - 2, color=_QUIET)


def _tile(scene: Scene) -> _Tile:
    width_px = _TILE_PX - 2 * _PADDING_PX
    lines = [line for word in scene.words for line in _wrapped(word, width_px, _BAD)]
    objects = _wrapped("   ".join(map(_object, scene.marks[:NUM_TAGGED])), width_px)
    lines += objects[:_MOST_OBJECT_LINES]
    if len(scene.marks) > NUM_TAGGED:
        lines.append(_Line(text=f"and {len(scene.marks) - NUM_TAGGED:,} more", colour=_QUIET))
    for caption in scene.captions[:_MOST_CAPTIONS]:
        lines += _wrapped(_caption(caption), width_px)
    width, height = scene.picture.width, scene.picture.height
    scale = min(width_px / width, _PICTURE_PX / height)
    return _Tile(
        key=scene.key,
        facts=f"{width} x {height}, {objects_in_words(scene)}",
        scene=scene,
        size_px=(max(1, round(width * scale)), max(1, round(height * scale))),
        lines=lines,
    )


def _broken_tile(broken: Broken) -> _Tile:
    width_px = _TILE_PX - 2 * _PADDING_PX
    return _Tile(
        key=broken.key,
        facts="cannot be shown",
        scene=None,
        size_px=(width_px, _PICTURE_PX // 2),
        lines=_wrapped(shortened(broken.reason), width_px, _BAD),
    )


def _object(mark: Mark) -> str:
    """ "1 red circle 90" """
    score = "" if mark.score is None else f" {100 * mark.score:.0f}"
    return f"{mark.number} {mark.name}{score}{' (wrong)' if mark.true is False else ''}"


def _caption(caption: Caption) -> str:
    """The caption with the numbers of the objects that its phrases mean, and the similarities."""
    parts = []
    at = 0
    for phrase in caption.phrases:
        if phrase.end > _LONGEST_CAPTION or not phrase.numbers:
            continue
        alike = "" if phrase.similarity is None else f" {similarity(phrase.similarity)}"
        parts.append(f"{caption.text[at : phrase.end]} [{phrase.numbers[0]}{alike}]")
        at = phrase.end
    rest = caption.text[at:_LONGEST_CAPTION]
    return "".join(parts) + rest + "..." * (len(caption.text) > _LONGEST_CAPTION)


def _draw_tile(sheet: _Sheet, tile: _Tile, left: int, top: int, height: int) -> None:
    card = sheet.axes(left, top, _TILE_PX, height)
    card.set_facecolor(_CARD)
    for spine in card.spines.values():
        spine.set(visible=True, color=_RULE)
    _write(card, _PADDING_PX, _PADDING_PX, textwrap.shorten(tile.key, _LONGEST_KEY) or tile.key)
    facts = tile.facts[: int((_TILE_PX - 2 * _PADDING_PX) / _LETTER_PX) - _LONGEST_KEY]
    _write(card, _TILE_PX - _PADDING_PX - len(facts) * _LETTER_PX, _PADDING_PX, facts, _QUIET)
    wide, high = tile.size_px
    picture_top = top + _PADDING_PX + _KEY_PX
    panel = sheet.axes(left + (_TILE_PX - wide) // 2, picture_top, wide, high)
    if tile.scene is None:
        panel.set_facecolor(_TRACK)
        panel.text(wide / 2, high / 2, "damaged", color=_BAD, fontsize=_TITLE_PX, ha="center")
    else:
        _draw_picture(panel, tile.scene)
    below = picture_top - top + high + _PADDING_PX
    for number, line in enumerate(tile.lines):
        _write(card, _PADDING_PX, below + number * _LINE_PX, line.text, line.colour)


def _draw_picture(panel: Axes, scene: Scene) -> None:
    """The picture with its boxes, as the page draws them, in pixels of the original."""
    width, height = scene.picture.width, scene.picture.height
    panel.imshow(scene.picture.picture, extent=(0, width, height, 0), aspect="auto")
    panel.set(xlim=(0, width), ylim=(height, 0))
    for mark in reversed(scene.marks):
        edge = colour(mark.number - 1)
        if mark.number > NUM_TAGGED:
            _frame(panel, mark.box, edge, 1, alpha=0.5)
            continue
        _frame(panel, mark.box, "black", 4, alpha=0.6)
        _frame(panel, mark.box, edge, 2, style="dashed" if is_dashed(mark.number) else "solid")
    for box in scene.truth:
        _frame(panel, box, "black", 3, style="dotted")
        _frame(panel, box, "white", 1, style="dotted")
    for mark in reversed(scene.marks[:NUM_TAGGED]):
        long, short = tag_texts(mark, is_named=len(scene.marks) <= NUM_NAMED)
        is_above = mark.box[1] > 0.08 * height
        panel.annotate(
            _printable(long or short),
            mark.box[:2],
            (_TAG_PADDING_PX, _TAG_PADDING_PX if is_above else -_TAG_PADDING_PX),
            textcoords="offset points",
            fontsize=_LETTERS_PX - 2,
            va="bottom" if is_above else "top",
            bbox={
                "facecolor": colour(mark.number - 1),
                "edgecolor": "none",
                "pad": _TAG_PADDING_PX,
            },
            clip_on=True,
            parse_math=False,
        )


def _frame(
    panel: Axes,
    box: Box,
    edge: str,
    width_px: int,
    *,
    style: str = "solid",
    alpha: float | None = None,
) -> None:
    from matplotlib.patches import Rectangle

    x0, y0, x1, y1 = box
    panel.add_patch(
        Rectangle(
            (x0, y0),
            x1 - x0,
            y1 - y0,
            fill=False,
            edgecolor=edge,
            linewidth=width_px,
            linestyle=style,
            alpha=alpha,
            antialiased=False,
        )
    )
